// How fast this machine reads memory: passes over 1 GiB, each one's GB/s. argv[1]: how many.
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv) {
  const size_t count = (size_t)1 << 28;
  float *values = aligned_alloc(4096, count * sizeof(float));
  if (values == NULL || argc < 2) return 1;
#pragma omp parallel for
  for (size_t i = 0; i < count; i++) values[i] = 1;
  float total = 0;
  for (int pass = 0; pass < atoi(argv[1]); pass++) {
    const double began = omp_get_wtime();
#pragma omp parallel for simd reduction(+ : total)
    for (size_t i = 0; i < count; i++) total += values[i];
    printf("%.3f\n", count * sizeof(float) / (omp_get_wtime() - began) / 1e9);
  }
  fprintf(stderr, "%g\n", total);  // or the compiler would leave the reading out
  return 0;
}

// How fast this machine reads memory: the best of several passes over 1 GiB, in GB/s.
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>

int main(void) {
  const size_t count = (size_t)1 << 28;
  float *values = aligned_alloc(4096, count * sizeof(float));
  if (values == NULL) return 1;
#pragma omp parallel for
  for (size_t i = 0; i < count; i++) values[i] = 1;
  double best = 0;
  float total = 0;
  for (int pass = 0; pass < 8; pass++) {
    const double began = omp_get_wtime();
#pragma omp parallel for simd reduction(+ : total)
    for (size_t i = 0; i < count; i++) total += values[i];
    const double speed = count * sizeof(float) / (omp_get_wtime() - began) / 1e9;
    if (speed > best) best = speed;
  }
  fprintf(stderr, "%g\n", total);  // or the compiler would leave the reading out
  printf("%.3f\n", best);
  return 0;
}

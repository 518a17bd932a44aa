/* Plans the jobs of a step's attention, and turns positions into factors. */
#include <math.h>

#include "paged_attention.h"

#define RANGE 512      /* tokens of a stream in one job */
#define FEW_ANGLES 512 /* are found before helpers have begun */
#define ALIGNMENT 64

static void add_job(Step *step, Job job) {
    if (step->jobs) step->jobs[step->num_jobs] = job;
    step->num_jobs++;
}

/* A chunk's jobs for one key head: some rows at a time over all that they see. */
static void plan_prompt(Step *step, const Chunk *chunk, int64_t head) {
    const int64_t at_once = MAX_QUERIES / group_of(step), start = chunk->end - chunk->num_rows;
    for (int64_t row = 0; row < chunk->num_rows; row += at_once) {
        const int64_t num = least(at_once, chunk->num_rows - row);
        add_job(step, (Job){chunk->first_row + row, num, head, chunk->table, 0, start + row + num, -1});
    }
}

/* The jobs of one row: its tokens a range at a time. */
static void plan_stream(Step *step, const Chunk *chunk, int64_t head) {
    const int64_t num_ranges = (chunk->end + RANGE - 1) / RANGE, row = chunk->first_row;
    for (int64_t i = 0; i < num_ranges; i++) {
        const int64_t partial = num_ranges > 1 ? step->num_partials + i : -1;
        add_job(step, (Job){row, 1, head, chunk->table, i * RANGE, least(chunk->end, (i + 1) * RANGE), partial});
    }
    if (num_ranges == 1) return;
    if (step->merges) step->merges[step->num_merges] = (Merge){row, head, step->num_partials, num_ranges};
    step->num_merges++;
    step->num_partials += num_ranges;
}

/* Counts jobs, merges and partial results, and writes them down where there is room; the last chunks, which may be
   long, come first. */
static void plan_jobs(Step *step) {
    step->num_jobs = step->num_merges = step->num_partials = 0;
    for (int64_t i = step->num_chunks; i-- > 0;)
        for (int64_t head = 0; head < step->num_kv_heads; head++)
            (step->chunks[i].num_rows > 1 ? plan_prompt : plan_stream)(step, step->chunks + i, head);
}

/* The cosine and the sine of each row's position on the axis of each frequency. */
static void find_rotation(const Step *step, int num_threads) {
    const int64_t half = step->head_dim / 2, num_rows = step->num_rows;
#pragma omp parallel for num_threads(num_threads) if (num_rows * half > FEW_ANGLES)
    for (int64_t row = 0; row < num_rows; row++)
        for (int64_t i = 0; i < half; i++) {
            const float angle = (float)step->positions[step->axes[i] * num_rows + row] * step->frequencies[i];
            step->rotation[row * 2 * half + i] = cosf(angle);
            step->rotation[(row * 2 + 1) * half + i] = sinf(angle);
        }
}

/* `size` bytes of a workspace from `*used` on; NULL where there is none. */
static void *take(char *workspace, int64_t *used, int64_t size) {
    void *taken = workspace ? workspace + *used : 0;
    *used += (size + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    return taken;
}

static int64_t take_arrays(Step *step, char *workspace) {
    int64_t used = 0;
    step->rotation = take(workspace, &used, step->num_rows * step->head_dim * (int64_t)sizeof(float));
    step->jobs = take(workspace, &used, step->num_jobs * (int64_t)sizeof(Job));
    step->merges = take(workspace, &used, step->num_merges * (int64_t)sizeof(Merge));
    const int64_t partial = group_of(step) * (step->head_dim + 2) * (int64_t)sizeof(float);
    step->partials = take(workspace, &used, step->num_partials * partial);
    return used;
}

/* Plans a step of rows and chunks whose `numbers` are tokens, slots, positions [3], all [num_rows]; chunks; tables of
   blocks. Returns the bytes of workspace that it takes; nothing is planned if there are fewer. */
int64_t plan_step(Step *step, const int64_t *numbers, int64_t num_rows, int64_t num_chunks, char *workspace,
                  int64_t num_bytes, int num_threads) {
    step->num_rows = num_rows;
    step->num_chunks = num_chunks;
    step->slots = numbers + num_rows;
    step->positions = numbers + 2 * num_rows;
    step->chunks = (const Chunk *)(numbers + 5 * num_rows);
    step->blocks = numbers + 5 * num_rows + 4 * num_chunks;
    step->jobs = 0, step->merges = 0;
    plan_jobs(step);
    const int64_t wanted = take_arrays(step, 0);
    if (wanted > num_bytes) return wanted;
    take_arrays(step, workspace);
    plan_jobs(step);
    find_rotation(step, num_threads);
    return wanted;
}

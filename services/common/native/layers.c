/* The layers of the language model for a few rows, in one call: with weights read in a tenth of a millisecond, what lies
   between two kernels would count. */

#include "paged_attention.h"

#define ALIGNMENT 64

/* Linear layers are those of linear.c; gate_up is gated. */
typedef struct {
    const float *input_norm, *post_norm; /* [size] */
    const void *qkv, *output, *gate_up, *down;
} Layer;

/* `size` of a row, and `num_gated` that `down` takes. */
typedef struct {
    int64_t num_layers, size, num_gated, num_heads, num_kv_heads, head_dim;
    const Layer *layers;
    float eps;
} Model;

/* Where the rows are between two kernels. `scratch` is what linear layers take. */
typedef struct {
    float *normed, *projected, *attended, *added, *gated;
    char *scratch;
} Rooms;

void add_and_scale(float *rows, const float *added, const float *weight, float *out, int64_t num, int64_t dim,
                   float eps, int num_threads);
void attend_to_pages(const Step *step, const float *projected, float *layer, float *out, int num_threads);
int64_t linear_scratch_bytes(const void *layer, int64_t num_rows);
void linear_run(const void *layer, const float *x, int64_t num_rows, float *out, char *scratch, int32_t num_threads);

static float *take(char *workspace, int64_t *used, int64_t num_values) {
    float *taken = workspace ? (float *)(workspace + *used) : 0;
    *used += (num_values * (int64_t)sizeof(float) + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    return taken;
}

static int64_t take_rooms(const Model *model, int64_t num_rows, char *workspace, Rooms *rooms) {
    const int64_t attended = model->num_heads * model->head_dim, both = 2 * model->num_kv_heads * model->head_dim;
    int64_t used = 0;
    rooms->normed = take(workspace, &used, num_rows * model->size);
    rooms->projected = take(workspace, &used, num_rows * (attended + both));
    rooms->attended = take(workspace, &used, num_rows * attended);
    rooms->added = take(workspace, &used, num_rows * model->size);
    rooms->gated = take(workspace, &used, num_rows * model->num_gated);
    rooms->scratch = workspace ? workspace + used : 0;
    return used;
}

static int64_t most(int64_t first, int64_t second) { return first > second ? first : second; }

/* Of the workspace that `run_layers` takes for so many rows. */
int64_t layers_workspace_bytes(const Model *model, int64_t num_rows) {
    const Layer *layer = model->layers;
    Rooms rooms;
    int64_t scratch = 0;
    const void *const linears[] = {layer->qkv, layer->output, layer->gate_up, layer->down};
    for (int i = 0; i < 4; i++) scratch = most(scratch, linear_scratch_bytes(linears[i], num_rows));
    return take_rooms(model, num_rows, 0, &rooms) + scratch;
}

/* `rows` [step's, size], in place, through all layers; the keys and values of layer i go into `memory` + i * `stride`. */
void run_layers(const Model *model, const Step *step, float *rows, float *memory, int64_t stride, char *workspace,
                int num_threads) {
    const int64_t num = step->num_rows, size = model->size;
    const float *added = 0;
    Rooms at;
    take_rooms(model, num, workspace, &at);
    for (int64_t i = 0; i < model->num_layers; i++, memory += stride) {
        const Layer *layer = model->layers + i;
        add_and_scale(rows, added, layer->input_norm, at.normed, num, size, model->eps, num_threads);
        linear_run(layer->qkv, at.normed, num, at.projected, at.scratch, num_threads);
        attend_to_pages(step, at.projected, memory, at.attended, num_threads);
        linear_run(layer->output, at.attended, num, at.added, at.scratch, num_threads);
        add_and_scale(rows, at.added, layer->post_norm, at.normed, num, size, model->eps, num_threads);
        linear_run(layer->gate_up, at.normed, num, at.gated, at.scratch, num_threads);
        linear_run(layer->down, at.gated, num, at.added, at.scratch, num_threads);
        added = at.added;
    }
    for (int64_t i = 0; i < num * size; i++) rows[i] += added[i];
}

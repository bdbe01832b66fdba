/* The work of llama-perplexity on one row, in our words: the same scalar loops over the same types.
 *
 * Scored: what tools/perplexity/perplexity.cpp does for --kl-divergence (lines 191-250 as of
 * llama-cpp-python 0.3.36): maximum, sum of expf, then the clamped divergence with the base's top.
 * Encoded: what it does for --kl-divergence-base (lines 79-113): extent, sum of expf, codes.
 */

#include <math.h>
#include <stdint.h>
#include <string.h>

static float rows_log_sum_exp(const float *x, int n, float largest) {
    double total = 0;
    for (int i = 0; i < n; i++) total += expf(x[i] - largest);
    return (float)log(total);
}

/* One row: fills out[0..2] with KLD, NLL, base NLL; returns 1 if both tops are the same token. */
static int score_row(const float *x, const uint16_t *row, int n, int token, double *out) {
    float largest = x[0];
    int top = 0;
    for (int i = 1; i < n; i++) {
        if (x[i] > largest) {
            largest = x[i];
            top = i;
        }
    }
    const float lse = rows_log_sum_exp(x, n, largest);
    float scale, low;
    memcpy(&scale, row, sizeof scale);
    memcpy(&low, row + 2, sizeof low);
    row += 4;
    out[1] = largest + lse - x[token];
    out[2] = -(scale * row[token] + low);
    largest += lse;

    double total = 0;
    int base_top = -1;
    float base_largest = 0;
    for (int i = 0; i < n; i++) {
        const float lp = scale * row[i] + low;
        if (i == 0 || lp > base_largest) {
            base_largest = lp;
            base_top = i;
        }
        if (lp > -16.f) total += expf(lp) * (lp - x[i] + largest);
    }
    out[0] = total;
    return top == base_top;
}

/* rows x n logits against rows x stride words; out is rows x 3. Returns how many tops agree. */
int llama_score(const float *logits, const uint16_t *words, const int32_t *tokens, int rows, int n,
                int stride, double *out) {
    int same = 0;
    for (int i = 0; i < rows; i++) {
        same += score_row(logits + (size_t)i * n, words + (size_t)i * stride, n, tokens[i],
                          out + (size_t)i * 3);
    }
    return same;
}

static int nearest(float value) {
    const float shifted = value + 12582912.f;
    int bits;
    memcpy(&bits, &shifted, sizeof bits);
    return (bits & 0x007fffff) - 0x00400000;
}

static void encode_row(const float *x, int n, uint16_t *row) {
    float largest = x[0], smallest = x[0];
    for (int i = 1; i < n; i++) {
        largest = x[i] > largest ? x[i] : largest;
        smallest = x[i] < smallest ? x[i] : smallest;
    }
    if (smallest < largest - 16) smallest = largest - 16;
    const float low = smallest - largest - rows_log_sum_exp(x, n, largest);
    const float scale = (largest - smallest) / 65535.f;
    memcpy(row, &scale, sizeof scale);
    memcpy(row + 2, &low, sizeof low);
    row += 4;
    if (scale == 0) {
        memset(row, 0, (size_t)n * sizeof *row);
        return;
    }
    const float inverse = 1 / scale;
    for (int i = 0; i < n; i++) {
        row[i] = x[i] > smallest ? (uint16_t)nearest(inverse * (x[i] - smallest)) : 0;
    }
}

/* rows x n logits into rows x stride words. */
void llama_encode(const float *logits, int rows, int n, int stride, uint16_t *words) {
    for (int i = 0; i < rows; i++) {
        encode_row(logits + (size_t)i * n, n, words + (size_t)i * stride);
    }
}

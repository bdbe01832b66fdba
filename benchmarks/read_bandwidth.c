/* How fast one core can read two streams at all: 64-byte integer sums, nothing else. */

#include <stdint.h>

typedef uint64_t wide __attribute__((vector_size(64), aligned(1), may_alias));

enum { UNROLLED = 4 };

/* Sum of both streams' 8-byte words, in step; bytes beyond the last whole 256 are left out. */
static uint64_t sum_stream_pair(const char *a, int64_t a_bytes, const char *b, int64_t b_bytes) {
    const int64_t block = UNROLLED * (int64_t)sizeof(wide);
    int64_t a_blocks = a_bytes / block, b_blocks = b_bytes / block;
    wide s[UNROLLED] = {0};
    for (int64_t done = 0, other = 0; done < a_blocks; done++, a += block) {
        for (int k = 0; k < UNROLLED; k++) s[k] += ((const wide *)a)[k];
        /* The second stream keeps pace in proportion, as codes do beside logits. */
        while (other * a_blocks < (done + 1) * b_blocks) {
            for (int k = 0; k < UNROLLED; k++) s[k] += ((const wide *)b)[k];
            b += block;
            other++;
        }
    }
    uint64_t total = 0;
    for (int k = 0; k < UNROLLED; k++)
        for (int lane = 0; lane < 8; lane++) total += s[k][lane];
    return total;
}

uint64_t read_rows(const char *a, int64_t a_row_bytes, const char *b, int64_t b_row_bytes,
                   int64_t rows) {
    return sum_stream_pair(a, a_row_bytes * rows, b, b_row_bytes * rows);
}

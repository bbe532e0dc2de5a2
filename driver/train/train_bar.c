#include "driver/train/train_bar.h"

#include <string.h>

enum { BAR_WIDTH = 64 };

double
mc_train_bar(const float *counts, size_t n, bool utf8, char *out)
{
    static const char *const blocks[] = {"▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"};
    static const char *const signs[] = {".", ":", "-", "=", "+", "*", "#", "@"};
    double sum = 0, most = 0;
    size_t width = n < BAR_WIDTH ? n : BAR_WIDTH;
    for (size_t e = 0; e < n; e++) {
        sum += (double)counts[e];
        most = (double)counts[e] > most ? (double)counts[e] : most;
    }
    out[0] = 0;
    for (size_t i = 0; i < width; i++) {
        double here = 0;
        for (size_t e = n * i / width; e < n * (i + 1) / width; e++)
            here = (double)counts[e] > here ? (double)counts[e] : here;
        int level = most > 0 ? (int)(here / most * 7 + 0.5) : 0;
        strcat(out, utf8 ? blocks[level] : signs[level]);
    }
    return sum > 0 ? most * (double)n / sum - 1 : 0;
}

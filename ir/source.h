/* source: loaded texts, and spans in them. A span is bytes; lines and columns are computed only for printing. */
#ifndef MC_IR_SOURCE_H
#define MC_IR_SOURCE_H

#include "runtime/base/str.h"
#include "runtime/base/vec.h"

typedef struct mc_span {
    uint32_t file; /* index + 1 into mc_sources; 0 = no source */
    uint32_t begin, end;
} mc_span;

typedef struct mc_source {
    mc_str name, text;
} mc_source;

typedef struct mc_sources {
    mc_arena *arena;
    MC_VEC(mc_source) files;
} mc_sources;

/* Copies name and text; returns the file number for spans. */
uint32_t mc_sources_add(mc_sources *sources, mc_str name, mc_str text);
const mc_source *mc_source_of(const mc_sources *sources, mc_span span); /* NULL when the span has none */

typedef struct mc_location {
    mc_str file;
    int line, column; /* from 1; columns count bytes */
    mc_str text;      /* the whole line */
} mc_location;

mc_location mc_locate(const mc_sources *sources, mc_span span);
mc_span mc_span_join(mc_span a, mc_span b); /* from a's begin to b's end */

#endif

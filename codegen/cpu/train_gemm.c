/* The kernels: which columns of which groups this thread computes, and in what blocks.
 *
 *     for each group, for blocks of this thread's columns      (down: and of 512 rows)
 *       for blocks of 256 k                                    b packed: stays in L2, a panel of it in L1
 *         for blocks of 16 tiles of rows                       a packed (dw), or pointers to its rows
 *           for each panel, for each tile: tile, finish
 *       down: scatter
 *
 * Work is (rows of a group) x (panels of columns), laid end to end and cut into equal shares at panels: even whatever
 * the routing. down cuts columns only, because groups add up in y in ascending order. */
#include "codegen/cpu/train_gemm_parts.h"

enum { WRITE_COST = 8 }; /* of an element of dw, in steps of k */

typedef struct kernel {
    mc_kb *kb;
    mc_train_kind kind;
    LLVMValueRef y, a, b, bias, offsets, a_rows, b_rows, gates, residual; /* arguments */
    LLVMValueRef width, n, as_it_lies, accumulate;
    LLVMValueRef n_panels, b_block, a_block, c_block; /* scratch */
    LLVMValueRef pointers, edge;                      /* on the stack: rows of a; a tile of which a part exists */
    LLVMValueRef group, row, n_rows, depth;           /* of the group at hand: first row, rows of y, length of chains */
    LLVMValueRef y_group;                             /* y at its first row */
    LLVMValueRef column, n_columns;                   /* block of columns */
    LLVMValueRef k, kc, first, last, panel_bytes;     /* block of k; first, last: i1; bytes of a panel of b */
    LLVMValueRef tiles_row, tiles_rows;               /* block of tiles: first row and rows, within the group */
    LLVMValueRef n_tiles, each, more;                 /* its tiles: rows of each, and one more for the first `more` */
    LLVMValueRef next_column, next_group;             /* where the block of b after all of k begins */
    LLVMValueRef ahead[5]; /* of mc_train_ahead: next, row_bytes, from and to of a tile, lines */
} kernel;

static LLVMValueRef
constant(const kernel *j, int64_t x)
{
    return kb_i64(j->kb, x);
}

static LLVMValueRef
is_present(const kernel *j, LLVMValueRef p)
{
    return kb_icmp(j->kb, LLVMIntNE, p, LLVMConstNull(j->kb->ptr));
}

static LLVMValueRef
ceil_div(const kernel *j, LLVMValueRef x, LLVMValueRef y)
{
    return kb_udiv(j->kb, kb_add(j->kb, x, kb_sub(j->kb, y, constant(j, 1))), y);
}

/* The size of blocks when n is cut evenly into as few of at most `most` as possible, in units; at least one unit. */
static LLVMValueRef
even_block(const kernel *j, LLVMValueRef n, int64_t most, int64_t unit)
{
    LLVMValueRef one = constant(j, 1), parts = kb_max(j->kb, ceil_div(j, n, constant(j, most)), one);
    LLVMValueRef units = ceil_div(j, ceil_div(j, n, parts), constant(j, unit));
    return kb_mul(j->kb, kb_max(j->kb, units, one), constant(j, unit));
}

/* list + first, or null */
static LLVMValueRef
list_from(const kernel *j, LLVMValueRef list, LLVMValueRef first)
{
    return kb_select(j->kb, is_present(j, list), kb_elem(j->kb, list, first, 4), list);
}

/* ---- packing -------------------------------------------------------------------------------------------------- */

static void
transpose_b(const kernel *j)
{
    mc_kb *kb = j->kb;
    int64_t nr = kb->target.nr;
    LLVMValueRef row = kb_add(kb, kb_mul(kb, j->group, j->n), j->column), transpose = mc_train_transpose(kb);
    LLVMValueRef from = kb_elem(kb, j->b, kb_add(kb, kb_mul(kb, row, j->depth), j->k), 4);
    LLVMValueRef row_bytes = kb_mul(kb, j->depth, constant(j, 4));
    kb_loop l = kb_loop_begin(kb, constant(j, 0), j->n_columns, constant(j, nr), 0, NULL);
    LLVMValueRef panel = kb_mul(kb, kb_udiv(kb, l.i, constant(j, nr)), j->panel_bytes);
    LLVMValueRef args[5] = {kb_gep(kb, from, kb_mul(kb, l.i, row_bytes)), row_bytes,
                            kb_min(kb, kb_sub(kb, j->n_columns, l.i), constant(j, nr)), j->kc,
                            kb_gep(kb, j->b_block, panel)};
    kb_call(kb, transpose, args, 5);
    kb_loop_end(kb, &l);
}

/* Rows of b: of the group's matrix, or those that the group's rows name. */
static void
gather_b(const kernel *j)
{
    mc_kb *kb = j->kb;
    bool dw = j->kind == MC_TRAIN_KIND_DW;
    LLVMValueRef null = LLVMConstNull(kb->ptr), first = kb_add(kb, dw ? j->row : kb_mul(kb, j->group, j->depth), j->k);
    LLVMValueRef args[9] = {kb_elem(kb, j->b, j->column, 4),
                            kb_mul(kb, j->n, constant(j, 4)),
                            dw ? list_from(j, j->b_rows, first) : null,
                            first,
                            dw ? list_from(j, j->gates, first) : null,
                            j->n_columns,
                            j->kc,
                            j->b_block,
                            j->panel_bytes};
    kb_call(kb, mc_train_gather_b(kb), args, 9);
}

static void
pack_b(const kernel *j)
{
    mc_kb *kb = j->kb;
    if (j->kind == MC_TRAIN_KIND_DW) {
        gather_b(j);
    } else if (j->kind == MC_TRAIN_KIND_DOWN) {
        transpose_b(j);
    } else {
        kb_if c = kb_if_begin(kb, j->as_it_lies);
        gather_b(j);
        kb_else(kb, &c);
        transpose_b(j);
        kb_if_end(kb, &c);
    }
}

static LLVMValueRef
a_panel_bytes(const kernel *j)
{
    int64_t mr = j->kb->target.mr;
    return kb_mul(j->kb, kb_add(j->kb, kb_mul(j->kb, j->kc, constant(j, mr)), constant(j, 8)), constant(j, 4));
}

/* dw: columns of a as panels. The others: pointers to its rows. */
static void
prepare_a(const kernel *j)
{
    mc_kb *kb = j->kb;
    if (j->kind == MC_TRAIN_KIND_DW) {
        LLVMValueRef first = kb_add(kb, j->row, j->k);
        LLVMValueRef args[9] = {kb_elem(kb, j->a, j->tiles_row, 4),
                                kb_mul(kb, j->width, constant(j, 4)),
                                list_from(j, j->a_rows, first),
                                first,
                                LLVMConstNull(kb->ptr),
                                j->tiles_rows,
                                j->kc,
                                j->a_block,
                                a_panel_bytes(j)};
        kb_call(kb, mc_train_gather_a(kb), args, 9);
        return;
    }
    LLVMValueRef a = kb_elem(kb, j->a, j->k, 4), list = j->kind == MC_TRAIN_KIND_ROWS ? j->a_rows : NULL;
    kb_loop l = kb_loop_begin(kb, constant(j, 0), j->tiles_rows, constant(j, 1), 0, NULL);
    LLVMValueRef row = kb_add(kb, kb_add(kb, j->row, j->tiles_row), l.i);
    if (list) {
        kb_if listed = kb_if_begin(kb, is_present(j, list));
        LLVMValueRef named = kb_convert(kb, kb_load(kb, kb->i32, kb_elem(kb, list, row, 4), 4), kb->i64);
        kb_if_end(kb, &listed);
        row = kb_if_value(kb, &listed, named, row);
    }
    kb_store(kb, kb_elem(kb, a, kb_mul(kb, row, j->width), 4), kb_elem(kb, j->pointers, l.i, 8), 8);
    kb_loop_end(kb, &l);
}

/* ---- the next block of b, fetched by the tiles of this one ------------------------------------------------------ */

/* In equal parts by the last block of tiles, so that memory is read while the sums are made. */
static void
plan_ahead(kernel *j, LLVMValueRef k_block, LLVMValueRef row_block)
{
    mc_kb *kb = j->kb;
    int64_t nr = kb->target.nr, line = 64;
    LLVMValueRef next_k = kb_add(kb, j->k, k_block), n_panels = ceil_div(j, j->n_columns, constant(j, nr));
    LLVMValueRef column = kb_select(kb, j->last, j->next_column, j->column);
    LLVMValueRef group = kb_select(kb, j->last, j->next_group, j->group);
    LLVMValueRef k = kb_select(kb, j->last, constant(j, 0), next_k), four = constant(j, 4), lies = j->as_it_lies;
    LLVMValueRef across = kb_add(kb, kb_mul(kb, kb_add(kb, kb_mul(kb, group, j->depth), k), j->n), column);
    LLVMValueRef along = kb_add(kb, kb_mul(kb, kb_add(kb, kb_mul(kb, group, j->n), column), j->depth), k);
    LLVMValueRef rows = kb_select(kb, lies, k_block, j->n_columns);
    LLVMValueRef row_bytes = kb_mul(kb, kb_select(kb, lies, j->n_columns, k_block), four);
    LLVMValueRef is_last = kb_icmp(kb, LLVMIntSGE, kb_add(kb, j->tiles_row, row_block), j->n_rows);
    j->ahead[0] = kb_elem(kb, j->b, kb_select(kb, lies, across, along), 4);
    j->ahead[1] = kb_mul(kb, kb_select(kb, lies, j->n, j->depth), four);
    j->ahead[2] = ceil_div(j, rows, kb_mul(kb, j->n_tiles, n_panels));
    j->ahead[3] = kb_select(kb, is_last, rows, constant(j, 0));
    j->ahead[4] = ceil_div(j, row_bytes, constant(j, line));
}

static void
fetch_ahead(const kernel *j, LLVMValueRef tile)
{
    mc_kb *kb = j->kb;
    LLVMValueRef from = kb_mul(kb, tile, j->ahead[2]), to = kb_min(kb, kb_add(kb, from, j->ahead[2]), j->ahead[3]);
    LLVMValueRef args[5] = {j->ahead[0], j->ahead[1], from, to, j->ahead[4]};
    kb_call(kb, mc_train_ahead(kb), args, 5);
}

/* ---- tiles ---------------------------------------------------------------------------------------------------- */

static void
call_finish(const kernel *j, LLVMValueRef c, LLVMValueRef c_stride, LLVMValueRef y, LLVMValueRef y_stride,
            LLVMValueRef bias, LLVMValueRef residual, LLVMValueRef n_rows, LLVMValueRef n_columns)
{
    LLVMValueRef args[8] = {c, c_stride, y, y_stride, bias, residual, n_rows, n_columns};
    kb_call(j->kb, mc_train_finish(j->kb), args, 8);
}

/* p + offset elements after the last block of k when p is there, else null. */
static LLVMValueRef
at_last(const kernel *j, LLVMValueRef p, LLVMValueRef offset)
{
    mc_kb *kb = j->kb;
    LLVMValueRef use = kb_and(kb, j->last, is_present(j, p));
    return kb_select(kb, use, kb_elem(kb, p, offset, 4), LLVMConstNull(kb->ptr));
}

/* A tile that is summed in y, or in the buffer when it has rows or columns that do not exist. */
static void
tile_in_y(const kernel *j, LLVMValueRef tile_fn, LLVMValueRef *args, LLVMValueRef row, LLVMValueRef column,
          LLVMValueRef n_rows)
{
    mc_kb *kb = j->kb;
    int64_t nr = kb->target.nr;
    LLVMValueRef null = LLVMConstNull(kb->ptr), left = kb_sub(kb, j->n_columns, column), stride, y, at;
    LLVMValueRef n_columns = kb_min(kb, left, constant(j, nr));
    LLVMValueRef edge = kb_icmp(kb, LLVMIntSLT, left, constant(j, nr)), edge_stride = constant(j, nr * 4);
    if (j->kind == MC_TRAIN_KIND_DW)
        edge = kb_or(kb, edge, kb_icmp(kb, LLVMIntSLT, n_rows, constant(j, kb->target.mr)));
    at = kb_add(kb, kb_mul(kb, row, j->n), kb_add(kb, j->column, column));
    y = kb_elem(kb, j->y_group, at, 4);
    stride = kb_mul(kb, j->n, constant(j, 4));
    kb_if old = kb_if_begin(kb, kb_and(kb, edge, kb_icmp(kb, LLVMIntEQ, j->first, kb_bool(kb, false))));
    call_finish(j, y, stride, j->edge, edge_stride, null, null, n_rows, n_columns);
    kb_if_end(kb, &old);
    if (j->kind == MC_TRAIN_KIND_DW) { /* where the next tile's sums are */
        LLVMValueRef mr = constant(j, kb->target.mr), next = kb_gep(kb, y, kb_mul(kb, mr, stride));
        LLVMValueRef ahead[5] = {next, stride, constant(j, 0), mr, constant(j, 1)};
        kb_call(kb, mc_train_ahead(kb), ahead, 5);
    }
    args[4] = kb_select(kb, edge, j->edge, y);
    args[5] = kb_select(kb, edge, edge_stride, stride);
    kb_call(kb, tile_fn, args, 7);
    LLVMValueRef bias = null, residual = null, finish = edge;
    if (j->kind == MC_TRAIN_KIND_ROWS) {
        bias = at_last(j, j->bias, kb_add(kb, kb_mul(kb, j->group, j->n), kb_add(kb, j->column, column)));
        residual = at_last(j, j->residual, kb_add(kb, kb_mul(kb, j->row, j->n), at));
        finish = kb_or(kb, finish, kb_or(kb, is_present(j, bias), is_present(j, residual)));
    }
    kb_if c = kb_if_begin(kb, finish);
    call_finish(j, args[4], args[5], y, stride, bias, residual, n_rows, n_columns);
    kb_if_end(kb, &c);
}

static void
emit_tile(const kernel *j, LLVMValueRef panel, LLVMValueRef t)
{
    mc_kb *kb = j->kb;
    int64_t nr = kb->target.nr, mr = kb->target.mr;
    bool dw = j->kind == MC_TRAIN_KIND_DW;
    LLVMValueRef row, n_rows, a, column = kb_mul(kb, panel, constant(j, nr));
    if (dw) {
        row = kb_mul(kb, t, constant(j, mr));
        n_rows = kb_min(kb, kb_sub(kb, j->tiles_rows, row), constant(j, mr));
        a = kb_gep(kb, j->a_block, kb_mul(kb, t, a_panel_bytes(j)));
    } else {
        row = kb_add(kb, kb_mul(kb, t, j->each), kb_min(kb, t, j->more));
        n_rows = kb_add(kb, j->each, kb_zext(kb, kb_icmp(kb, LLVMIntSLT, t, j->more), kb->i64));
        a = kb_elem(kb, j->pointers, row, 8);
    }
    row = kb_add(kb, j->tiles_row, row);
    if (!dw) fetch_ahead(j, kb_add(kb, kb_mul(kb, panel, j->n_tiles), t));
    LLVMValueRef tile_fn = dw ? mc_train_panel_tile(kb) : mc_train_tile(kb);
    LLVMValueRef args[7] = {n_rows, j->kc, a,       kb_gep(kb, j->b_block, kb_mul(kb, panel, j->panel_bytes)),
                            NULL,   NULL,  j->first};
    if (j->kind == MC_TRAIN_KIND_DOWN) {
        int64_t stride = MC_TRAIN_COLUMNS * 4;
        args[4] = kb_gep(kb, kb_gep(kb, j->c_block, kb_mul(kb, row, constant(j, stride))),
                         kb_mul(kb, column, constant(j, 4)));
        args[5] = constant(j, stride);
        kb_call(kb, tile_fn, args, 7);
    } else {
        tile_in_y(j, tile_fn, args, row, column, n_rows);
    }
}

/* ---- blocks --------------------------------------------------------------------------------------------------- */

/* All of k for the rows and columns at hand. Without any k y becomes 0 once. */
static void
emit_depth(kernel *j)
{
    mc_kb *kb = j->kb;
    int64_t mr = kb->target.mr, nr = kb->target.nr;
    LLVMValueRef zero = constant(j, 0), one = constant(j, 1), whole = kb_max(kb, j->depth, one);
    LLVMValueRef k_block = even_block(j, whole, MC_TRAIN_KC, kb->vl);
    LLVMValueRef row_block = even_block(j, j->n_rows, MC_TRAIN_TILES * mr, mr);
    kb_loop k = kb_loop_begin(kb, zero, whole, k_block, 0, NULL);
    j->k = k.i;
    j->kc = kb_min(kb, k_block, kb_sub(kb, j->depth, k.i));
    j->first = kb_icmp(kb, LLVMIntEQ, k.i, zero);
    j->last = kb_icmp(kb, LLVMIntSGE, kb_add(kb, k.i, k_block), whole);
    if (j->accumulate) j->first = kb_and(kb, j->first, kb_icmp(kb, LLVMIntEQ, j->accumulate, zero));
    j->panel_bytes = kb_mul(kb, k_block, constant(j, nr * 4));
    pack_b(j);
    kb_loop tiles = kb_loop_begin(kb, zero, j->n_rows, row_block, 0, NULL);
    j->tiles_row = tiles.i;
    j->tiles_rows = kb_min(kb, row_block, kb_sub(kb, j->n_rows, tiles.i));
    j->n_tiles = ceil_div(j, j->tiles_rows, constant(j, mr));
    j->each = kb_udiv(kb, j->tiles_rows, j->n_tiles);
    j->more = kb_urem(kb, j->tiles_rows, j->n_tiles);
    prepare_a(j);
    if (j->kind != MC_TRAIN_KIND_DW) plan_ahead(j, k_block, row_block);
    kb_loop panel = kb_loop_begin(kb, zero, ceil_div(j, j->n_columns, constant(j, nr)), one, 0, NULL);
    kb_loop t = kb_loop_begin(kb, zero, j->n_tiles, one, 0, NULL);
    emit_tile(j, panel.i, t.i);
    kb_loop_end(kb, &t);
    kb_loop_end(kb, &panel);
    kb_loop_end(kb, &tiles);
    kb_loop_end(kb, &k);
}

/* down: rows in blocks, whose sums stay in scratch until they are added to y. */
static void
emit_down(const kernel *group)
{
    kernel j = *group;
    mc_kb *kb = j.kb;
    LLVMValueRef block = even_block(&j, j.n_rows, MC_TRAIN_DOWN_ROWS, kb->target.mr);
    kb_loop l = kb_loop_begin(kb, constant(&j, 0), group->n_rows, block, 0, NULL);
    j.row = kb_add(kb, group->row, l.i);
    j.n_rows = kb_min(kb, block, kb_sub(kb, group->n_rows, l.i));
    emit_depth(&j);
    LLVMValueRef at = kb_add(kb, kb_mul(kb, j.group, j.n), j.column);
    LLVMValueRef args[8] = {kb_param(kb, 0), j.c_block,   constant(&j, MC_TRAIN_COLUMNS * 4), j.row, j.n_rows,
                            j.column,        j.n_columns, list_from(&j, j.bias, at)};
    kb_call(kb, mc_train_scatter(kb), args, 8);
    kb_loop_end(kb, &l);
}

/* The group's rows on these panels of columns. */
static void
emit_panels(kernel *j, LLVMValueRef begin, LLVMValueRef end)
{
    mc_kb *kb = j->kb;
    int64_t nr = kb->target.nr;
    int64_t most = (j->kind == MC_TRAIN_KIND_DW ? MC_TRAIN_DW_COLUMNS : MC_TRAIN_COLUMNS) / nr;
    LLVMValueRef block = even_block(j, kb_max(kb, kb_sub(kb, end, begin), constant(j, 0)), most, 1);
    kb_loop l = kb_loop_begin(kb, begin, end, block, 0, NULL);
    LLVMValueRef last = kb_min(kb, kb_add(kb, l.i, block), end);
    j->column = kb_mul(kb, l.i, constant(j, nr));
    j->n_columns = kb_sub(kb, kb_min(kb, kb_mul(kb, last, constant(j, nr)), j->n), j->column);
    LLVMValueRef done = kb_icmp(kb, LLVMIntSGE, last, end), again = constant(j, 0);
    if (j->kind == MC_TRAIN_KIND_DOWN) again = kb_mul(kb, begin, constant(j, nr));
    j->next_column = kb_select(kb, done, again, kb_add(kb, j->column, j->n_columns));
    j->next_group = kb_select(kb, done, kb_add(kb, j->group, constant(j, 1)), j->group);
    if (j->kind == MC_TRAIN_KIND_DOWN)
        emit_down(j);
    else
        emit_depth(j);
    kb_loop_end(kb, &l);
}

/* ---- groups and threads --------------------------------------------------------------------------------------- */

static LLVMValueRef
load_offset(const kernel *j, LLVMValueRef group)
{
    mc_kb *kb = j->kb;
    return kb_convert(kb, kb_load(kb, kb->i32, kb_elem(kb, j->offsets, group, 4), 4), kb->i64);
}

/* The first panel of a group that begins at `from` or later; panels are `each` long and the group begins at `start`. */
static LLVMValueRef
panel_from(const kernel *j, LLVMValueRef from, LLVMValueRef start, LLVMValueRef each)
{
    mc_kb *kb = j->kb;
    LLVMValueRef ahead = kb_max(kb, kb_sub(kb, from, start), constant(j, 0));
    return kb_min(kb, ceil_div(j, ahead, kb_max(kb, each, constant(j, 1))), j->n_panels);
}

typedef struct share {                                  /* of one group for this thread */
    LLVMValueRef row, n_rows, depth, y, a, first, last; /* as in kernel; the panels first .. last - 1 */
} share;

/* Groups laid end to end: this thread's panels of group `group`. */
static share
share_of_group(const kernel *j, LLVMValueRef n_groups, LLVMValueRef all)
{
    mc_kb *kb = j->kb;
    bool dw = j->kind == MC_TRAIN_KIND_DW;
    LLVMValueRef one = constant(j, 1), thread = kb_thread(kb), n_threads = kb_n_threads(kb);
    LLVMValueRef begin = load_offset(j, j->group), n = kb_sub(kb, load_offset(j, kb_add(kb, j->group, one)), begin);
    share s = {.row = begin, .n_rows = dw ? j->width : n, .depth = dw ? n : j->width, .a = j->a};
    s.y = kb_elem(kb, j->y, kb_mul(kb, dw ? kb_mul(kb, j->group, j->width) : begin, j->n), 4);
    if (j->kind == MC_TRAIN_KIND_DOWN) {
        kb_split(kb, j->n_panels, 1, &s.first, &s.last);
        return s;
    }
    LLVMValueRef extra = constant(j, dw ? WRITE_COST : 0), each = kb_add(kb, n, extra);
    LLVMValueRef total = kb_mul(kb, kb_add(kb, all, kb_mul(kb, extra, n_groups)), j->n_panels);
    LLVMValueRef start = kb_mul(kb, kb_add(kb, begin, kb_mul(kb, extra, j->group)), j->n_panels);
    s.first = panel_from(j, kb_udiv(kb, kb_mul(kb, total, thread), n_threads), start, each);
    s.last = panel_from(j, kb_udiv(kb, kb_mul(kb, total, kb_add(kb, thread, one)), n_threads), start, each);
    /* Nothing to add: an empty group is left alone, unless it is to become 0. */
    if (dw) {
        LLVMValueRef skip = kb_and(kb, kb_icmp(kb, LLVMIntEQ, n, constant(j, 0)),
                                   kb_icmp(kb, LLVMIntNE, j->accumulate, constant(j, 0)));
        s.last = kb_select(kb, skip, s.first, s.last);
    }
    return s;
}

/* Without groups: a grid of column parts and, when there are few panels to share, row parts. */
static share
share_of_all(const kernel *j)
{
    mc_kb *kb = j->kb;
    bool dw = j->kind == MC_TRAIN_KIND_DW;
    LLVMValueRef thread = kb_thread(kb), n_threads = kb_n_threads(kb), rows = kb_arg_int(kb, MC_TRAIN_ROWS), end;
    LLVMValueRef one = constant(j, 1), mr = constant(j, kb->target.mr), height = dw ? j->width : rows, begin;
    LLVMValueRef many = kb_icmp(kb, LLVMIntSGE, j->n_panels, kb_mul(kb, n_threads, constant(j, 4)));
    LLVMValueRef flat = kb_icmp(kb, LLVMIntSLE, height, kb_mul(kb, n_threads, mr));
    LLVMValueRef columns = kb_max(kb, kb_min(kb, n_threads, j->n_panels), one);
    columns = kb_select(kb, kb_or(kb, many, flat), columns, one);
    LLVMValueRef row_parts = kb_udiv(kb, n_threads, columns), row_part = kb_udiv(kb, thread, columns);
    share s = {.depth = dw ? rows : j->width};
    kb_split_part(kb, j->n_panels, one, kb_urem(kb, thread, columns), columns, &s.first, &s.last);
    kb_split_part(kb, height, mr, row_part, row_parts, &begin, &end);
    LLVMValueRef busy = kb_icmp(kb, LLVMIntSLT, row_part, row_parts);
    s.n_rows = kb_select(kb, busy, kb_sub(kb, end, begin), constant(j, 0));
    s.row = dw ? constant(j, 0) : begin;
    s.y = kb_elem(kb, j->y, kb_mul(kb, begin, j->n), 4);
    s.a = dw ? kb_elem(kb, j->a, begin, 4) : j->a;
    return s;
}

/* The one of a group where there are groups, else that of everything. */
static share
choose_share(const kernel *j, LLVMValueRef grouped, LLVMValueRef n_groups)
{
    mc_kb *kb = j->kb;
    kb_if c = kb_if_begin(kb, grouped);
    share g = share_of_group(j, n_groups, load_offset(j, n_groups)), d;
    kb_else(kb, &c);
    d = share_of_all(j);
    kb_if_end(kb, &c);
    return (share){.row = kb_if_value(kb, &c, g.row, d.row),
                   .n_rows = kb_if_value(kb, &c, g.n_rows, d.n_rows),
                   .depth = kb_if_value(kb, &c, g.depth, d.depth),
                   .y = kb_if_value(kb, &c, g.y, d.y),
                   .a = kb_if_value(kb, &c, g.a, d.a),
                   .first = kb_if_value(kb, &c, g.first, d.first),
                   .last = kb_if_value(kb, &c, g.last, d.last)};
}

static void
emit_groups(const kernel *all)
{
    kernel j = *all;
    mc_kb *kb = j.kb;
    LLVMValueRef zero = constant(&j, 0), one = constant(&j, 1), grouped = is_present(&j, j.offsets);
    LLVMValueRef n_groups = kb_select(kb, grouped, kb_arg_int(kb, MC_TRAIN_GROUPS), one);
    kb_loop g = kb_loop_begin(kb, zero, n_groups, one, 0, NULL);
    j.group = g.i;
    share s = j.kind == MC_TRAIN_KIND_DOWN ? share_of_group(&j, n_groups, NULL) : choose_share(&j, grouped, n_groups);
    j.row = s.row;
    j.n_rows = s.n_rows;
    j.depth = s.depth;
    j.y_group = s.y;
    j.a = s.a;
    kb_if some = kb_if_begin(kb, kb_icmp(kb, LLVMIntSGT, j.n_rows, zero));
    emit_panels(&j, s.first, s.last);
    kb_if_end(kb, &some);
    kb_loop_end(kb, &g);
}

static size_t
b_bytes(mc_train_kind kind)
{
    int columns = kind == MC_TRAIN_KIND_DW ? MC_TRAIN_DW_COLUMNS : MC_TRAIN_COLUMNS;
    return (size_t)MC_TRAIN_KC * (size_t)columns * sizeof(float);
}

static size_t
a_bytes(const mc_cpu_target *t)
{
    return (size_t)MC_TRAIN_TILES * ((size_t)MC_TRAIN_KC * (size_t)t->mr + 8) * sizeof(float);
}

size_t
mc_train_scratch_bytes(const mc_cpu_target *target, mc_train_kind kind)
{
    size_t down = (size_t)(MC_TRAIN_DOWN_ROWS + target->mr) * MC_TRAIN_COLUMNS * sizeof(float);
    return b_bytes(kind) + (kind == MC_TRAIN_KIND_DW ? a_bytes(target) : kind == MC_TRAIN_KIND_DOWN ? down : 0);
}

static void
load_arguments(kernel *j)
{
    mc_kb *kb = j->kb;
    int64_t nr = kb->target.nr, mr = kb->target.mr;
    j->y = kb_arg_ptr(kb, MC_TRAIN_Y);
    j->a = kb_arg_ptr(kb, MC_TRAIN_A);
    j->b = kb_arg_ptr(kb, MC_TRAIN_B);
    j->bias = kb_arg_ptr(kb, MC_TRAIN_BIAS);
    j->offsets = kb_arg_ptr(kb, MC_TRAIN_OFFSETS);
    j->a_rows = kb_arg_ptr(kb, MC_TRAIN_A_ROWS);
    j->b_rows = kb_arg_ptr(kb, MC_TRAIN_B_ROWS);
    j->gates = kb_arg_ptr(kb, MC_TRAIN_GATES);
    j->residual = kb_arg_ptr(kb, MC_TRAIN_RESIDUAL);
    j->width = kb_arg_int(kb, MC_TRAIN_WIDTH);
    j->n = kb_arg_int(kb, MC_TRAIN_N);
    j->as_it_lies = kb_icmp(kb, LLVMIntNE, kb_arg_int(kb, MC_TRAIN_AS_IT_LIES), constant(j, 0));
    j->accumulate = j->kind == MC_TRAIN_KIND_DW ? kb_arg_int(kb, MC_TRAIN_ACCUMULATE) : NULL;
    j->n_panels = ceil_div(j, j->n, constant(j, nr));
    j->b_block = kb_scratch(kb);
    j->a_block = j->c_block = kb_gepi(kb, j->b_block, (int64_t)b_bytes(j->kind));
    j->pointers = kb_alloca(kb, MC_TRAIN_TILES * mr * 8, 8);
    j->edge = kb_alloca(kb, mr * nr * 4, 64);
}

/* down: y = 0 in this thread's columns */
static void
clear_columns(const kernel *j)
{
    mc_kb *kb = j->kb;
    LLVMValueRef nr = constant(j, kb->target.nr), first, last;
    kb_split(kb, j->n_panels, 1, &first, &last);
    LLVMValueRef begin = kb_min(kb, kb_mul(kb, first, nr), j->n), end = kb_min(kb, kb_mul(kb, last, nr), j->n);
    kb_loop row = kb_loop_begin(kb, constant(j, 0), kb_arg_int(kb, MC_TRAIN_ROWS), constant(j, 1), 0, NULL);
    LLVMValueRef p = kb_elem(kb, j->y, kb_mul(kb, row.i, j->n), 4);
    for (kb_vloop l = kb_vloop_begin(kb, begin, end, 0, NULL); kb_vloop_next(kb, &l);)
        kb_store_masked(kb, LLVMConstNull(kb->vf), kb_elem(kb, p, l.i, 4), 4, l.mask);
    kb_loop_end(kb, &row);
}

static void
emit_kernel(kernel *j)
{
    mc_kb *kb = j->kb;
    load_arguments(j);
    if (j->kind == MC_TRAIN_KIND_DOWN) {
        clear_columns(j);
        emit_groups(j);
        return;
    }
    kb_if wanted = kb_if_begin(kb, is_present(j, j->y));
    emit_groups(j);
    kb_if_end(kb, &wanted);
}

const char *
mc_train_kernel_name(mc_train_kind kind)
{
    static const char *const NAMES[] = {"train_rows", "train_down", "train_dw"};
    return NAMES[kind];
}

const char *
mc_train_kernel(mc_kb *kb, mc_train_kind kind)
{
    const char *name = mc_train_kernel_name(kind);
    if (mc_map_has(&kb->kernels, mc_str_of(name))) return name;
    kernel j = {.kb = kb, .kind = kind};
    kb_kernel_begin(kb, name);
    emit_kernel(&j);
    kb_kernel_end(kb);
    return name;
}

// What a kernel is given: a few small arrays, the same for every backend.
// spectramind_fused/multi_tensor/tables.py builds them, in this layout.
#pragma once

#include <cstdint>

#include "portable.h"

namespace spectramind {

// What a slot is stored in. Plain dtypes are rounded to nearest even; storages.h has the others.
enum Stored : int32_t {
  FLOAT32,
  FLOAT64,
  BFLOAT16,
  FLOAT16,
  STOCHASTIC_BFLOAT16,
  STOCHASTIC_FLOAT16,
  SPLIT_BFLOAT16,   // the 16 lower bits of a float32 beside it, and a checksum of each piece
  MASTER_BFLOAT16,  // a float32 beside it
  MASTER_FLOAT16,
  SIGNED8,  // codes, and a scale of each group beside them
  UNSIGNED8,
  FACTORED  // a product of two vectors, which is not written: beside one the other, and a layout
};

// Rows that a slot has beside its own.
SPECTRAMIND_HD constexpr int rows_beside(int32_t stored) {
  return stored == SPLIT_BFLOAT16 || stored == FACTORED ? 2 : stored >= MASTER_BFLOAT16 ? 1 : 0;
}
SPECTRAMIND_HD constexpr bool is_random(int32_t stored) {
  return stored == STOCHASTIC_BFLOAT16 || stored == STOCHASTIC_FLOAT16 || stored == SIGNED8 ||
         stored == UNSIGNED8;
}

// Rows of `pointers`. The states of the rule follow, then, where any group has them, the slow
// weights and the averaged weights: these are slots, with an element for each parameter. Then come
// the numbers that the rule keeps of a tensor; last what slots have beside their own rows. A tensor
// that takes no part in a step has the address 0 as its gradient; an empty one that does has
// another.
enum Slot { PARAM, GRAD, STEP, FIRST_STATE };
constexpr int kMaxSlots = 8;

// Elements that share a scale.
constexpr int64_t kGroup = 32;

// Elements of which the norm pass makes one partial sum, and a split parameter has one checksum.
constexpr int64_t kPiece = 8192;

// Partial sums of which `reduce` makes one.
constexpr int64_t kRowsPerSum = 1024;

// Columns that come before the rule's own.
enum CommonHyperparameter {
  MAXIMIZE,
  MAX_NORM,     // infinity: no clipping
  LOOKAHEAD_K,  // the period in steps; 0: no Lookahead
  LOOKAHEAD_ALPHA,
  EMA_DECAY,  // negative: no average
  COMMON_HYPERPARAMETERS
};
enum CommonScalar {
  GRAD_FACTOR,  // sign, unscaling and clipping in one number
  SKIP,         // 1: this step changes nothing
  SYNC,
  SYNC_ALPHA,
  EMA_WEIGHT,  // of the parameter; negative: no average
  COMMON_SCALARS
};

// A hyperparameter may be held by a tensor of the user's.
enum SourceColumn {
  SOURCE_ADDRESS,  // 0: it is in `hyperparameters`
  SOURCE_DTYPE,    // FLOAT32 or FLOAT64
  SOURCE_COLUMNS
};

// Whose random bits a tensor draws. Its element i is element `offset + i / run * stride + i % run`
// of the parameter, of which it may be a part.
enum PlaceColumn { PARAMETER, OFFSET, RUN, STRIDE, SEED, PLACE_COLUMNS };

// How a tensor lies of which rows and columns of matrices have a mean square each (factored.h): in
// memory it is [..., outer, between, inner, within], of whose dimensions `outer` and `inner` are
// the last two of the tensor, in any order. A vector has an element for each place but those along
// one of them: the outer vector none along `inner`, and the inner one none along `outer`.
enum LayoutColumn {
  OUTER,
  BETWEEN,
  INNER,
  WITHIN,
  ROWS_ARE_OUTER,  // 1: the outer vector is of rows, else of columns
  OUTER_VECTOR,    // VectorColumn
  INNER_VECTOR = OUTER_VECTOR + 4,
  LAYOUT_COLUMNS = INNER_VECTOR + 4
};
enum VectorColumn {
  HELD,    // address of the state
  FACTOR,  // of what the product is made of, in the compute type
  PARTS,   // of partial sums: so many rows
  PARTS_OF
};
static_assert(PARTS_OF + 1 == INNER_VECTOR - OUTER_VECTOR);

// A piece of a factored tensor, of which one program takes the sums.
enum TileColumn {
  TILE_TENSOR,
  TILE_NUMBER,  // in its tensor
  TILE_FIRST,   // of what comes before `outer`, and so on
  TILE_LAST,
  TILE_OUTER,
  TILE_LAST_OUTER,
  TILE_INNER,
  TILE_LAST_INNER,
  TILE_WITHIN,
  TILE_LAST_WITHIN,
  TILE_OUTER_PART,  // the row of the outer vector's partial sums
  TILE_INNER_PART,
  TILE_COLUMNS
};

// Elements of a tile, at most; of one of its rows, where there are rows enough; and of a row that
// threads sum together: shorter ones have one thread each, and so have their columns.
constexpr int64_t kTile = 4 * kPiece, kWidest = 512, kStraight = 128;

// What `measure` finds in a chunk: sums of squares, each with what it lacks where T is double.
enum MeasureColumn { OF_DIRECTION, OF_PARAM = 2, MEASURE_COLUMNS = 4 };

// Every field: its type and its name. One list, so that a library can say what it was built with
// (describe.h), and whoever fills the fields in can compare.
#define SPECTRAMIND_TABLES(FIELD)                                                          \
  FIELD(int64_t, tensors)                                                                  \
  FIELD(int64_t, chunks)                                                                   \
  FIELD(int64_t, chunk_elements)                                                           \
  FIELD(int64_t, grain)                 /* chunks that are worth a thread of their own */  \
  FIELD(int64_t, lookahead)             /* 1: there is a slot of slow weights */           \
  FIELD(int64_t, ema)                   /* 1: the last slot holds averaged weights */      \
  FIELD(int64_t, zero_grads)            /* 1: update leaves zeros in the gradients */      \
  FIELD(int64_t, wide_steps)            /* 1: step counters are float64, else float32 */   \
  FIELD(int64_t, first_number)          /* the row of the rule's first number */           \
  FIELD(int64_t, wide_numbers)          /* 1: its numbers are float64, else float32 */     \
  FIELD(int64_t, first_beside)          /* the row of the first beside a slot */           \
  FIELD(const int64_t*, pointers)       /* [slots + numbers][tensors], addresses */        \
  FIELD(const int64_t*, sizes)          /* [tensors], elements */                          \
  FIELD(const int64_t*, partial_rows)   /* [tensors], the first partial sum of each */     \
  FIELD(const int32_t*, groups)         /* [tensors], the parameter group of each */       \
  FIELD(const int64_t*, places)         /* [tensors][PlaceColumn] */                       \
  FIELD(const int64_t*, chunk_table)    /* [chunks][2], tensor and first element */        \
  FIELD(const double*, hyperparameters) /* [groups][common + the rule's] */                \
  FIELD(const int64_t*, sources)        /* likewise, [SourceColumn] */                     \
  FIELD(void*, scalars)                 /* [tensors][common + the rule's], compute type */ \
  FIELD(const int32_t*, stored)         /* [slots], a Stored of each */                    \
  FIELD(const int64_t*, first_chunks)   /* [tensors + 1], of those that are measured */    \
  FIELD(double*, measures)              /* [chunks][MeasureColumn], likewise */            \
  /* The norm pass: a sum of squares and a count of what is not finite, per piece. */      \
  FIELD(double*, partials)   /* [rows][2], of all tensors on the device */                 \
  FIELD(const double*, sums) /* [sum_rows][2], what `advance` adds up */                   \
  FIELD(int64_t, sum_rows)   /* 0: there was no norm pass */                               \
  FIELD(double*, norm)       /* of the unscaled gradients */                               \
  FIELD(float*, nonfinite)   /* 1: a gradient is not finite */                             \
  /* What a GradScaler asks for; null: nothing. */                                         \
  FIELD(const float*, grad_scale) /* the gradients carry this factor */                    \
  FIELD(const float*, found_inf)  /* not 0: skip the step */                               \
  FIELD(int64_t, skip_nonfinite)  /* 1: skip the step if a gradient is not finite */

struct Tables {
#define SPECTRAMIND_FIELD(type, name) type name;
  SPECTRAMIND_TABLES(SPECTRAMIND_FIELD)
#undef SPECTRAMIND_FIELD
};

// What the launches of factored tensors are given beside their tables.
#define SPECTRAMIND_FACTORING(FIELD)                                                \
  FIELD(int64_t, tiles)                                                             \
  FIELD(int64_t, pieces)                                                            \
  FIELD(int64_t, batches)                                                           \
  FIELD(int64_t, vector_stored)      /* a Stored, of all states that are vectors */ \
  FIELD(const int64_t*, layouts)     /* [tensors][LayoutColumn] */                  \
  FIELD(const int64_t*, tile_table)  /* [tiles][TileColumn] */                      \
  FIELD(const int64_t*, piece_table) /* [pieces][PieceColumn], of vectors */        \
  FIELD(const int64_t*, batch_table) /* [batches][BatchColumn], of matrices */

struct Factoring {
#define SPECTRAMIND_FIELD(type, name) type name;
  SPECTRAMIND_FACTORING(SPECTRAMIND_FIELD)
#undef SPECTRAMIND_FIELD
};
enum PieceColumn { PIECE_TENSOR, PIECE_VECTOR, PIECE_FIRST, PIECE_LAST, PIECE_COLUMNS };
enum BatchColumn { BATCH_TENSOR, BATCH_FIRST, BATCH_LAST, BATCH_COLUMNS };

}  // namespace spectramind

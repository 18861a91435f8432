// What a library was built with, in words. Python compares the tables with its own once, on
// loading: a library of another version would read them wrongly. What the rules need it reads from
// here.
#pragma once

#include <cstddef>
#include <string>

#include "tables.h"
#include "update_rules.h"

namespace spectramind {

inline std::string described(const char* what, int64_t number) {
  return std::string(what) + " " + std::to_string(number) + "\n";
}

template <class Rule>
std::string described_rule(int states) {
  return std::string("rule ") + Rule::name + " states " + std::to_string(states) +
         " hyperparameters " + std::to_string(int(Rule::H::COLUMNS)) + " scalars " +
         std::to_string(int(Rule::C::COLUMNS)) + " numbers " +
         std::to_string(int(Rule::N::COLUMNS)) + "\n";
}

// A line for each field of Tables with its offset, each number both sides count on, each rule.
inline std::string description() {
  std::string text;
#define SPECTRAMIND_OFFSET(type, name) \
  text += described("field " #name, int64_t(offsetof(Tables, name)));
  SPECTRAMIND_TABLES(SPECTRAMIND_OFFSET)
#undef SPECTRAMIND_OFFSET
  text += described("size", sizeof(Tables));
  text += described("float32", FLOAT32) + described("float64", FLOAT64) +
          described("bfloat16", BFLOAT16) + described("float16", FLOAT16) +
          described("stochastic bfloat16", STOCHASTIC_BFLOAT16) +
          described("stochastic float16", STOCHASTIC_FLOAT16) +
          described("split bfloat16", SPLIT_BFLOAT16) +
          described("master bfloat16", MASTER_BFLOAT16) +
          described("master float16", MASTER_FLOAT16) + described("signed8", SIGNED8) +
          described("unsigned8", UNSIGNED8) + described("factored", FACTORED);
  text += described("slot param", PARAM) + described("slot grad", GRAD) +
          described("slot step", STEP) + described("slot first_state", FIRST_STATE) +
          described("max_slots", kMaxSlots) + described("piece", kPiece) +
          described("group", kGroup) + described("rows_per_sum", kRowsPerSum);
  text += described("common_hyperparameters", COMMON_HYPERPARAMETERS) +
          described("common_scalars", COMMON_SCALARS) +
          described("source_columns", SOURCE_COLUMNS) + described("place_columns", PLACE_COLUMNS);
  text += described("layout_columns", LAYOUT_COLUMNS) + described("tile_columns", TILE_COLUMNS) +
          described("piece_columns", PIECE_COLUMNS) + described("batch_columns", BATCH_COLUMNS) +
          described("measure_columns", MEASURE_COLUMNS) + described("tile", kTile) +
          described("widest", kWidest) + described("straight", kStraight);
#define SPECTRAMIND_OFFSET(type, name) \
  text += described("factoring " #name, int64_t(offsetof(Factoring, name)));
  SPECTRAMIND_FACTORING(SPECTRAMIND_OFFSET)
#undef SPECTRAMIND_OFFSET
#define SPECTRAMIND_RULE(Rule, States) text += described_rule<Rule>(States);
  SPECTRAMIND_EVERY_RULE(SPECTRAMIND_RULE)
#undef SPECTRAMIND_RULE
  return text;
}

}  // namespace spectramind

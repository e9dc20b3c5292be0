#include "core/plain_text.h"

#include <doctest/doctest.h>

using namespace fathom;

TEST_CASE("blanks go from both ends, capitals of ASCII alone become small") {
  CHECK(trimmed(" \t a b\r\n") == "a b");
  CHECK(trimmed(" \n").empty());
  CHECK(trimmed("").empty());
  CHECK(trimmed("\n a \n", " ") == "\n a \n");
  CHECK(lower("AZaz09-É") == "azaz09-É");
}

TEST_CASE("sizes in words") {
  CHECK(human_bytes(0) == "0 B");
  CHECK(human_bytes(1023) == "1023 B");
  CHECK(human_bytes(1536) == "1.5 KiB");
  CHECK(human_bytes(uint64_t{310} << 10) == "310 KiB");
  CHECK(human_bytes(uint64_t{3} << 50) == "3072 TiB");
  CHECK(mib(0) == "0 MiB");
  CHECK(mib(1) == "1 MiB");
  CHECK(mib(uint64_t{5} << 20) == "5 MiB");
  CHECK(mib((uint64_t{5} << 20) + 1) == "6 MiB");
}

TEST_CASE("the hash is FNV-1a and goes on where it stopped") {
  CHECK(fnv1a("") == 0xcbf29ce484222325);
  CHECK(fnv1a("a") == 0xaf63dc4c8601ec8c);
  CHECK(fnv1a("bar", fnv1a("foo")) == fnv1a("foobar"));
}

#include "server/service.h"

#include "server/json_constraint.h"

namespace fathom {

std::shared_ptr<const TokenTrie> Service::token_trie() {
  std::call_once(trie_made_, [&] { trie_ = make_token_trie(engine.tokenizer().vocab()); });
  return trie_;
}

}  // namespace fathom

#include "main/command_line.h"

#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <filesystem>
#include <set>
#include <string_view>

#include "core/error.h"
#include "core/printable.h"
#include "main/option_checks.h"

namespace fathom {
namespace {

std::string variable_of(const std::string& long_name) {
  std::string name = "FATHOM_" + long_name;
  std::transform(name.begin(), name.end(), name.begin(),
                 [](unsigned char c) { return c == '-' ? '_' : static_cast<char>(std::toupper(c)); });
  return name;
}

std::string unknown_command(const std::string& name, const CLI::App& root) {
  std::vector<std::string> names;
  for (const CLI::App* app : root.get_subcommands([](const CLI::App*) { return true; }))
    names.push_back(app->get_name());
  return "unknown command; expected " + listed(names) + ", got " + in_quotes(name) + "; try fathom --help";
}

bool names_a_model(const std::string& argument) {
  std::error_code ignored;
  return argument.ends_with(".gguf") ||
         std::filesystem::exists(std::filesystem::path(argument) / "config.json", ignored);
}

/// Of CLI11's "Could not convert: --json = maybe". Numbers have checks of their own, so that flags alone come here.
std::string conversion_problem(const std::string& cli_text) {
  constexpr std::string_view kBegin = "Could not convert: ", kBetween = " = ";
  const size_t between = cli_text.find(kBetween);
  if (!cli_text.starts_with(kBegin) || between == std::string::npos) return cli_text;
  return cli_text.substr(kBegin.size(), between - kBegin.size()) +
         ": not of the right kind; expected true or false, got " +
         in_quotes(cli_text.substr(between + kBetween.size()));
}

/// Of CLI11's "in is required": "-o,--out FILE", or for an argument what stands for it in the help, "IN.gguf".
std::string name_of_missing(const std::string& cli_text, const CLI::App& command) {
  const std::string name = cli_text.substr(0, cli_text.find(' '));
  const CLI::Option* option = command.get_option_no_throw(name);
  if (option == nullptr) return name;
  return (option->get_positional() ? "" : option->get_name(false, true) + " ") + option->get_type_name();
}

}  // namespace

void name_environment_variables(std::span<const Command> commands) {
  for (const Command& command : commands) {
    for (CLI::Option* option : command.app->get_options()) {
      if (!option->get_lnames().empty() && option->get_lnames()[0] != "help")
        option->envname(variable_of(option->get_lnames()[0]));
    }
  }
}

std::vector<std::string> unknown_variables(std::span<const Command> commands) {
  std::set<std::string> known;
  for (const Command& command : commands) {
    for (const CLI::Option* option : command.app->get_options()) known.insert(option->get_envname());
  }
  std::vector<std::string> unknown;
  for (char** variable = environ; *variable != nullptr; ++variable) {
    const std::string_view text = *variable;
    const std::string name(text.substr(0, text.find('=')));
    if (name.starts_with("FATHOM_") && known.count(name) == 0) unknown.push_back(name);
  }
  return unknown;
}

void apply_config_file(const std::string& path, std::span<const Command> commands, const CLI::App& active) {
  std::error_code ignored;
  if (std::filesystem::is_directory(path, ignored))
    throw Error(ErrorCode::kModel, "--config: " + path + ": a folder; expected an ini file");
  std::vector<CLI::ConfigItem> items;
  try {
    items = CLI::ConfigINI().from_file(path);
  } catch (const CLI::FileError&) {
    throw Error(ErrorCode::kModel, "--config: " + path + ": cannot be read; expected an ini file; try another path");
  }
  for (const CLI::ConfigItem& item : items) {
    if (item.name == "++" || item.name == "--") continue;  // CLI11's marks of where sections begin and end
    const std::string section = item.parents.empty() || item.parents[0] == "default" ? "" : item.parents[0];
    bool is_known = false;
    for (const Command& command : commands) {
      if (!section.empty() && command.app->get_name() != section) continue;
      CLI::Option* option = item.parents.size() > 1 ? nullptr : command.app->get_option_no_throw("--" + item.name);
      if (option == nullptr || item.name == "config" || item.name == "help") continue;
      is_known = true;
      if (command.app != &active || option->count() > 0) continue;
      if (option->get_expected_min() == 0) {
        option->add_result(option->get_flag_value(item.name, item.inputs.empty() ? "true" : item.inputs[0]));
      } else {
        for (const std::string& input : item.inputs) option->add_result(input);
      }
      option->run_callback();
    }
    if (!is_known) {
      throw Error(ErrorCode::kUsage, "--config: " + path +
                                         ": unknown key; expected a long option of a command without its dashes, got " +
                                         in_quotes(item.fullname()) + "; try fathom " + active.get_name() + " --help");
    }
  }
}

std::string usage_message(const CLI::ParseError& error, const CLI::App& root) {
  const std::vector<const CLI::App*> chosen = root.get_subcommands([](const CLI::App* app) { return app->parsed(); });
  const std::string command = chosen.empty() ? "" : chosen[0]->get_name();
  std::string what = printable(error.what(), 400);
  if (dynamic_cast<const CLI::ExtrasError*>(&error) != nullptr) {
    const std::vector<std::string> left = root.remaining(true);
    const std::string first = left.empty() ? "" : left[0];
    if (command.empty() && !first.empty() && first[0] != '-') return unknown_command(first, root);
    what = (first.starts_with("-") && first.size() > 1 ? "unknown option " : "unexpected argument ") + in_quotes(first);
    if (names_a_model(first) && chosen[0]->get_option_no_throw("--model") != nullptr)
      what += "; a model is given as -m " + printable(first);
  } else if (dynamic_cast<const CLI::ConversionError*>(&error) != nullptr) {
    what = conversion_problem(what);
  } else if (dynamic_cast<const CLI::RequiredError*>(&error) != nullptr) {
    what = "no " + name_of_missing(what, *chosen.at(0));
  } else if (dynamic_cast<const CLI::ArgumentMismatch*>(&error) != nullptr && what.ends_with(" missing")) {
    what = what.substr(0, what.find(':')) + ": no value behind it";
  }
  return (command.empty() ? "" : command + ": ") + what + "; try fathom " + (command.empty() ? "" : command + " ") +
         "--help";
}

}  // namespace fathom

//! Switches with a value, as Go's programs take them: `--quiet=true`, `--quiet=false`.

use std::collections::BTreeSet;
use std::ffi::OsString;

use clap::{ArgAction, Command};

/// Ends what is looked at: what follows are words, maybe another program's.
const WORDS: &str = "--";

/// The same `arguments` for a parser that knows no values of switches: those that are true without their value, those
/// that are false left out. What is neither is left as it is, to be refused.
pub(crate) fn without_values(
    command: &Command,
    arguments: impl IntoIterator<Item = OsString>,
) -> Vec<OsString> {
    let switches = switches(command);
    let mut words = false;
    let kept = arguments.into_iter().filter_map(|argument| {
        words |= argument == WORDS;
        let switch = argument.to_str().filter(|_| !words).and_then(|text| {
            let (name, value) = text.strip_prefix("--")?.split_once('=')?;
            let value = truth(value).filter(|_| switches.contains(name))?;
            Some(value.then(|| OsString::from(format!("--{name}"))))
        });
        switch.unwrap_or(Some(argument))
    });
    kept.collect()
}

/// What Go's `strconv.ParseBool` takes.
fn truth(value: &str) -> Option<bool> {
    match value {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// Long names that are switches in one command and nothing else in another.
fn switches(command: &Command) -> BTreeSet<String> {
    let (mut switches, mut valued) = (BTreeSet::new(), BTreeSet::new());
    sort(command, &mut switches, &mut valued);
    &switches - &valued
}

fn sort(command: &Command, switches: &mut BTreeSet<String>, valued: &mut BTreeSet<String>) {
    for argument in command.get_arguments() {
        let names = argument.get_long_and_visible_aliases().unwrap_or_default();
        let of_kind = match argument.get_action() {
            ArgAction::SetTrue => &mut *switches,
            _ => &mut *valued,
        };
        of_kind.extend(names.into_iter().map(str::to_owned));
    }
    for inner in command.get_subcommands() {
        sort(inner, switches, valued);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{Arg, CommandFactory as _};

    fn plain(command: &Command, arguments: &[&str]) -> Vec<OsString> {
        without_values(command, arguments.iter().map(OsString::from))
    }

    #[test]
    fn a_switch_may_have_a_value_of_gos() {
        let cli = crate::options::Cli::command();
        for (given, meant) in [
            (
                &["soci", "push", "--quiet=true", "x"][..],
                &["soci", "push", "--quiet", "x"][..],
            ),
            (
                &["soci", "push", "--quiet=F", "--plain-http=1", "x"],
                &["soci", "push", "--plain-http", "x"],
            ),
            (
                &["soci", "push", "--quiet=maybe", "x"],
                &["soci", "push", "--quiet=maybe", "x"],
            ),
            (
                &["soci", "trace", "x", "--", "y", "--quiet=true"],
                &["soci", "trace", "x", "--", "y", "--quiet=true"],
            ),
        ] {
            assert_eq!(
                plain(&cli, given),
                meant.iter().map(OsString::from).collect::<Vec<_>>()
            );
        }
    }

    #[test]
    fn what_takes_a_value_somewhere_keeps_it() {
        let switch = Arg::new("a").long("a").action(ArgAction::SetTrue);
        let valued = Arg::new("a").long("a").action(ArgAction::Set);
        let command = Command::new("x")
            .subcommand(Command::new("y").arg(switch))
            .subcommand(Command::new("z").arg(valued));
        assert_eq!(
            plain(&command, &["x", "z", "--a=true"]),
            ["x", "z", "--a=true"]
        );
    }
}

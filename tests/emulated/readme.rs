//! The recipe for a real Pi, word for word as the README has it: the blocks that begin with "```sh recipe NAME". Only
//! what an emulation must have otherwise is replaced, and a replacement that finds nothing to replace fails: so
//! the README cannot say one thing and this another.

const README: &str = include_str!("../../README.md");

/// A block of the recipe.
#[track_caller]
pub(crate) fn block(name: &str) -> String {
    let fence = format!("```sh recipe {name}");
    // In a list a block is indented, as is its end.
    let mut lines = README.lines().map(str::trim_start).skip_while(|line| *line != fence);
    assert!(lines.next().is_some(), "README.md has no block `{fence}`");
    lines.take_while(|line| *line != "```").map(|line| format!("{line}\n")).collect()
}

/// A block of the recipe with replacements.
#[track_caller]
pub(crate) fn block_with(name: &str, replacements: &[(&str, &str)]) -> String {
    let mut text = block(name);
    for (from, to) in replacements {
        assert!(
            text.contains(from),
            "the block `{name}` of README.md does not say {from:?} any more: {text}"
        );
        text = text.replace(from, to);
    }
    text
}

/// A user of the root filesystem of the recipe, with the password.
#[track_caller]
pub(crate) fn login() -> (String, String) {
    let text = block("rootfs");
    let (before, _) = text.split_once(" | chroot \"$1\" chpasswd").expect("the recipe sets a password");
    let (_, login) = before.rsplit_once("echo ").expect("the recipe echoes user:password");
    let (user, password) = login.split_once(':').expect("user:password");
    (user.to_owned(), password.to_owned())
}

/// What a shell of root's runs for commands of the recipe; `piman` is what the variable PIMAN names, and the shell
/// becomes it: a signal for the one is for the other.
pub(crate) fn script(commands: &str) -> String {
    format!("set -e\nsudo() {{ \"$@\"; }}\npiman() {{ exec \"$PIMAN\" \"$@\"; }}\n{commands}")
}

//! `piman policy`: what happens by what is on a Pi's disk, for everybody, a group or a Pi.

use anyhow::{Context as _, ensure};
use piman_core::install::Found;

use crate::cli::state_arg::StateFolder;
use crate::config::Options;
use crate::state::State;
use crate::state::decision::{Policy, Rule, Scope};
use crate::state::resolve::resolve;
use crate::text::human::columns;

/// Shows or sets rules.
#[derive(Debug, clap::Args)]
pub struct PolicyArgs {
    #[command(flatten)]
    state: StateFolder,
    /// For this Pi
    #[arg(long = "for", value_name = "DEVICE", conflicts_with = "group")]
    device: Option<String>,
    /// For the Pis of this group (`piman group`)
    #[arg(long, value_name = "GROUP")]
    group: Option<String>,
    /// Take away all rules of the server, the group or the Pi
    #[arg(long, conflicts_with = "rules")]
    clear: bool,
    /// Such as foreign=wait: one of blank, ours, incomplete, damaged, foreign, unreadable, and one of install, boot,
    /// wait; none shows what is set
    #[arg(value_name = "FOUND=ACTION")]
    rules: Vec<Rule>,
}

/// Sets what was asked for, and returns what to show.
///
/// # Errors
/// If no Pi is called so, or the state cannot be read or written.
pub fn run(args: &PolicyArgs) -> anyhow::Result<String> {
    let state = args.state.open_or_make()?;
    let scope = match (&args.device, &args.group) {
        (Some(device), _) => Scope::Device(resolve(device, &state.devices()?)?.name),
        (None, Some(group)) => Scope::Group(group.clone()),
        (None, None) => Scope::Server,
    };
    if args.clear || !args.rules.is_empty() {
        state.set_rules(&scope, &args.rules).with_context(|| format!("setting the policy of {scope}"))?;
    } else {
        ensure!(
            scope == Scope::Server,
            "say which rules {scope} gets, such as foreign=install, or --clear; `piman policy` shows all"
        );
    }
    table(&state, args.state.configuration()?)
}

/// All rules, the defaults among them.
fn table(state: &dyn State, configured: Option<Options>) -> anyhow::Result<String> {
    let configured = configured.map_or_else(Vec::new, |options| options.policy);
    let base = Policy::default().with(&configured);
    let built_in = Found::ALL.into_iter().map(|found| {
        let by = if configured.iter().any(|rule| rule.found == found) { "configuration" } else { "default" };
        [found.word().into(), base.of(found).word().into(), "every Pi".into(), by.into()]
    });
    let rules = state.rules()?;
    let set = rules.iter().map(|(scope, rule)| {
        [rule.found.word().into(), rule.action.word().into(), scope.to_string(), "piman policy".into()]
    });
    Ok(columns(["FOUND", "ACTION", "FOR", "BY"], built_in.chain(set)))
}

//! `piman personalise`: orders that Pis apply their profiles at the next boot, without being installed anew.

use std::fmt::Write as _;

use anyhow::bail;

use crate::cli::reinstall::operator;
use crate::cli::state_arg::StateFolder;
use crate::state::resolve::{Named, resolve};
use crate::state::{Ordered, PersonalOrder, State};
use crate::sys::clock::now_ms;
use crate::text::human::{columns, when};

/// Orders.
#[derive(Debug, clap::Args)]
pub struct PersonaliseArgs {
    #[command(flatten)]
    state: StateFolder,
    /// Show all orders, and what became of them
    #[arg(long, conflicts_with_all = ["cancel", "devices"])]
    list: bool,
    /// Cancel orders
    #[arg(long)]
    cancel: bool,
    /// Which Pis
    #[arg(value_name = "DEVICE", required_unless_present = "list")]
    devices: Vec<String>,
}

/// Orders, cancels or lists; all names are looked at before anything is done. Returns what to show.
///
/// # Errors
/// If a name means no Pi, or the state cannot be read or written.
pub fn run(args: &PersonaliseArgs) -> anyhow::Result<String> {
    let state = args.state.open()?;
    if args.list {
        return Ok(table(&state.personal_orders()?));
    }
    let devices = state.devices()?;
    let (mut named, mut wrong) = (Vec::new(), Vec::new());
    for text in &args.devices {
        match resolve(text, &devices) {
            Ok(pi) if named.contains(&pi) => {}
            Ok(pi) => named.push(pi),
            Err(e) => wrong.push(e.to_string()),
        }
    }
    if !wrong.is_empty() {
        bail!("{}; nothing was changed", wrong.join("; "));
    }
    let source = format!("piman personalise ({})", operator());
    let (mut out, mut missing) = (String::new(), Vec::new());
    for Named { name, note } in named {
        // Writing to a string does not fail.
        let _ = if args.cancel {
            if state.cancel_personal(&name)? {
                writeln!(out, "{name}: its profile is not applied")
            } else {
                missing.push(format!("nothing is ordered for {name}"));
                Ok(())
            }
        } else {
            match state.order_personal(&name, &source)? {
                Ordered::New => writeln!(out, "{name}: its profile is applied when it boots next"),
                Ordered::Already { ordered_ms, claimed, .. } => {
                    let begun = if claimed { ", and has begun" } else { "" };
                    writeln!(out, "{name}: this was ordered already, {}{begun}", when(ordered_ms, now_ms()))
                }
            }
        };
        if let Some(note) = note.filter(|_| !args.cancel) {
            let _ = writeln!(out, "  note: {note}");
        }
    }
    if !missing.is_empty() {
        bail!("{out}{}", missing.join("; "));
    }
    Ok(out)
}

fn table(orders: &[PersonalOrder]) -> String {
    if orders.is_empty() {
        return "no profile was ever ordered to be applied\n".into();
    }
    let rows = orders.iter().map(|order| {
        let standing = match (order.completed_ms, order.cancelled_ms, &order.installation) {
            (Some(at), ..) => format!("completed {}", when(at, now_ms())),
            (_, Some(at), _) => format!("cancelled {}", when(at, now_ms())),
            (_, _, Some(_)) => "begun".into(),
            _ => "waits for the Pi".into(),
        };
        [order.name.clone(), when(order.ordered_ms, now_ms()), order.source.clone(), standing]
    });
    columns(["DEVICE", "ORDERED", "BY", "STANDING"], rows)
}

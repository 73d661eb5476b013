//! `piman reinstall`: orders by serial number, hardware address or address, and never by a part of one.

use std::fmt::Write as _;

use anyhow::bail;

use crate::state::decision::Cancelled;
use crate::state::resolve::{Named, resolve};
use crate::state::{Order, Ordered, State};
use crate::sys::clock::now_ms;
use crate::text::human::when;

/// Orders or cancels reinstalls; all names are looked at before anything is done. Returns
/// what to show.
///
/// # Errors
/// If a name means no Pi or the state cannot be written.
pub fn reinstall(state: &dyn State, names: &[String], cancel: bool) -> anyhow::Result<String> {
    let devices = state.devices()?;
    let mut named = Vec::new();
    let mut wrong = Vec::new();
    for text in names {
        match resolve(text, &devices) {
            Ok(pi) if named.contains(&pi) => {}
            Ok(pi) => named.push(pi),
            Err(e) => wrong.push(e.to_string()),
        }
    }
    if !wrong.is_empty() {
        bail!("{}; nothing was changed", wrong.join("; "));
    }
    let mut out = String::new();
    let source = format!("piman reinstall ({})", operator());
    let mut missing = Vec::new();
    for Named { name, note } in named {
        // Writing to a string does not fail.
        let _ = if cancel {
            match state.cancel(&name)? {
                Cancelled::Yes => writeln!(out, "{name}: the reinstall is cancelled"),
                Cancelled::Begun { by, since_ms } => writeln!(
                    out,
                    "{name}: the reinstall had begun already, on {by}, {}: it is not begun again, but what was \
                     erased stays erased",
                    when(since_ms, now_ms())
                ),
                Cancelled::NoOrder => {
                    missing.push(format!("nothing is ordered for {name}"));
                    Ok(())
                }
            }
        } else {
            match state.order(&name, &source, None)? {
                Ordered::New => {
                    writeln!(out, "{name}: a reinstall is ordered; it happens when the Pi boots next")
                }
                Ordered::Already { ordered_ms, claimed: false, .. } => {
                    writeln!(out, "{name}: a reinstall was ordered already, {}", when(ordered_ms, now_ms()))
                }
                Ordered::Already { ordered_ms, claimed: true, .. } => writeln!(
                    out,
                    "{name}: a reinstall was ordered already, {}, and has begun",
                    when(ordered_ms, now_ms())
                ),
            }
        };
        if let Some(note) = note.filter(|_| !cancel) {
            let _ = writeln!(out, "  note: {note}");
        }
    }
    if !missing.is_empty() {
        bail!("{out}{}", missing.join("; "));
    }
    Ok(out)
}

pub(super) fn operator() -> String {
    // Under sudo the one who typed it is of interest, and not root.
    ["SUDO_USER", "USER", "LOGNAME"]
        .iter()
        .find_map(|v| std::env::var(v).ok())
        .unwrap_or_else(|| format!("user {}", rustix::process::getuid().as_raw()))
}

/// All orders as a table, the open ones first.
#[must_use]
pub fn table(orders: &[Order]) -> String {
    if orders.is_empty() {
        return "no reinstall was ever ordered\n".into();
    }
    let open = |o: &Order| o.completed_ms.is_none() && o.cancelled_ms.is_none();
    let rows = orders.iter().filter(|o| open(o)).chain(orders.iter().filter(|o| !open(o)));
    let rows = rows.map(|o| {
        let standing = match (o.completed_ms, o.cancelled_ms, o.claimed_ms) {
            (Some(at), _, _) => format!("completed {}", when(at, now_ms())),
            (_, Some(at), _) => format!("cancelled {}", when(at, now_ms())),
            (_, _, Some(at)) => format!("begun {}", when(at, now_ms())),
            _ => "waits for the Pi".into(),
        };
        [o.name.clone(), when(o.ordered_ms, now_ms()), o.source.clone(), standing]
    });
    crate::text::human::columns(["DEVICE", "ORDERED", "BY", "STANDING"], rows)
}

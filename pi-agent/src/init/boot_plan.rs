//! The attempt of a Pi that boots: the plan of an installation, with what the kernel
//! command line says.

use std::path::Path;
use std::sync::Arc;

use piman_core::install::Stage;
use piman_core::install::layout::Layout;

use super::attempt::Outcome;
use super::late;
use super::options::Options;
use super::system::{NEW_ROOT, find_init};
use crate::control::{Machine, Server};
use crate::failure::{Cause, Failure};
use crate::identity::Identity;
use crate::install::{self, Plan};
use crate::rpc::unit::Enrol;
use crate::telemetry::display::Display;
use crate::telemetry::log_buffer;
use crate::telemetry::progress::Progress;
use crate::trust::{Device, Key};
use crate::unsaid::{self, Unsaid};

/// Asks piman once, installs if it says so, and mounts the root filesystem.
#[must_use]
pub fn attempt(options: &Options, server: &Server) -> Outcome {
    // A Pi that should have a key and has none that can be read installs nothing.
    let key = match Key::find(options.key.as_deref()) {
        Ok(key) => key,
        Err(e) => return Outcome::Permanent(format!("the public key: {e:#}")),
    };
    let device =
        match options.device_key.as_deref().map(|file| Device::elsewhere(Path::new(file))).transpose() {
            Ok(device) => device,
            Err(e) => return Outcome::Permanent(format!("piman.device-key: {e:#}")),
        };
    let plan = plan(options, server, key, device);
    if let Some(why) = late::take()
        && !tell_late(&plan, Stage::Boot, &why)
    {
        late::keep(&why);
    }
    let mut machine = Machine { sets_clock: true, ..Machine::default() };
    let progress = Arc::new(Progress::new());
    let display = Display::start(Arc::clone(&progress));
    let done = install::attempt(&plan, &mut machine, &progress);
    drop(display);
    let mounted = match done {
        Ok(install::Outcome::Boot { card, root }) => {
            log::info!("the server says boot ({card})");
            root
        }
        Ok(install::Outcome::Installed { image, took, root, .. }) => {
            log::info!("installed image {image:.16} in {:.1} s", took.as_secs_f64());
            send_log(options, &plan);
            root
        }
        Err(failure) if failure.cause.is_passing() => return Outcome::Passing(failure.to_string()),
        Err(failure) => {
            log_buffer::keep(&failure.to_string());
            send_log(options, &plan);
            return Outcome::Permanent(failure.to_string());
        }
    };
    let Some(mounted) = mounted else {
        let why = "the root filesystem was not mounted";
        tell_late(&plan, Stage::Mount, why);
        return Outcome::Permanent(why.into());
    };
    // What failed when the initramfs was gone already.
    if let Some((_, Unsaid::NotBooted(why))) = unsaid::kept(Path::new(NEW_ROOT)) {
        // What the server did not get is kept for the next boot.
        if tell_late(&plan, Stage::Boot, &why) {
            unsaid::forget(Path::new(NEW_ROOT));
        }
    }
    // Looked at here, while it can still be a failure like another.
    match find_init(Path::new(NEW_ROOT), options.init.as_deref()) {
        Ok(_) => match mounted.keep() {
            Ok(_) => Outcome::Ready,
            Err(failure) => {
                install::report_early(&plan, &failure);
                Outcome::Permanent(failure.to_string())
            }
        },
        Err(wrong) => {
            let why = format!(
                "the installed system has no init that can run here ({wrong}): order piman reinstall with the \
                 archive of a whole system for this Pi"
            );
            tell_late(&plan, Stage::Boot, &why);
            Outcome::Permanent(why)
        }
    }
}

/// What this Pi installs, and how, by its kernel command line.
fn plan(options: &Options, server: &Server, key: Option<Key>, device: Option<Device>) -> Plan {
    Plan {
        server: server.clone(),
        disk: options.disk.clone(),
        size: None,
        layout: Layout { table: options.table, data_sectors: options.keep.sectors(), ..Layout::default() },
        discard: options.discard,
        keep: options.keep.clone(),
        choice: options.path,
        // Who boots a Pi this way gives its card to piman.
        yes: true,
        erase: options.erase,
        trust_unmarked: options.trust_unmarked,
        reinstall: false,
        identity: Identity::of_this_machine(),
        key,
        device,
        boot_from: Some(NEW_ROOT.into()),
        tell_time: install::TELL_TIME,
        service: options.service_port.map(|port| Enrol {
            host: server.host.clone(),
            port,
            // Whoever can fetch this initramfs could read one in it; a profile's file brings it to the Pi.
            password_file: None,
        }),
    }
}

/// Tells the server what failed after it was told that all was well. Returns whether it was delivered.
fn tell_late(plan: &Plan, stage: Stage, why: &str) -> bool {
    let failure = Failure { stage, cause: Cause::Refused, error: anyhow::anyhow!("{why}") };
    install::report_early(plan, &failure)
}

/// What passes is tried again and again: only an end is worth a file on the server.
fn send_log(options: &Options, plan: &Plan) {
    if options.transfer_port != 0 {
        log_buffer::send(&plan.server.host, options.transfer_port, &plan.identity);
    }
}

//! The command line.

pub mod call;
pub mod catalog;
#[cfg(feature = "demo")]
pub mod demo;
pub mod device_keys;
pub mod device_list;
pub mod devices;
mod disk_report;
pub mod doctor;
pub mod image;
pub mod image_about;
pub mod install;
pub mod key;
pub mod messages;
pub mod netboot;
pub mod personalise;
pub mod policy;
pub mod profile;
pub mod reinstall;
pub mod state_arg;
pub mod telemetry;
pub mod transfer;

use std::path::PathBuf;

use clap::{Parser, Subcommand};

use piman_core::rpc::{FUNCTIONS, Function};

use crate::config::{Options, Settings, check, state_folder};
use crate::rpc;
use crate::server::Server;
use crate::state::{self, Preview};
use crate::text::duration::HumanDuration;
use crate::text::human::print;
use crate::transfer::TransferError;
use catalog::GroupCommand;
#[cfg(feature = "demo")]
use demo::DemoArgs;
use device_list::ListCommand;
use image::ImageArgs;
use key::KeyCommand;
use messages::{MessagesCommand, MessagesError};
use state_arg::StateFolder;
use telemetry::{TelemetryArgs, Unreachable};
use transfer::{GetArgs, PutArgs};

/// Installs Raspberry Pis over the network.
#[derive(Debug, Parser)]
#[command(name = "piman", version, arg_required_else_help = true, max_term_width = 100)]
pub struct Cli {
    /// Show more on standard error (twice: everything a Pi says)
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
    /// What is logged: a level, or levels per room such as `info,piman::rpc=debug`; the variable PIMAN_LOG has the same form
    #[arg(long, global = true, value_name = "LEVELS")]
    log_level: Option<String>,
    /// How log lines on standard error look [default: human, or what the variable PIMAN_LOG_FORMAT says]
    #[arg(long, global = true, value_enum, value_name = "FORMAT")]
    log_format: Option<crate::logging::Format>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve Pis: tell them what to do and send them the root filesystem
    #[command(after_help = "TIME is written 90s, 5m or 2h. The configuration file is TOML with the same \
        names as the flags, such as `control-port = 3333`; flags win. When all ports are open, a line for \
        each is printed on standard output; the log goes to standard error.")]
    Serve {
        /// Configuration file
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        #[command(flatten)]
        options: Box<Options>,
    },
    /// Make the folder that Pis boot from
    #[command(subcommand)]
    Netboot(netboot::NetbootCommand),
    /// Check, before Pis do, whether a server with these options would work, and say what to do
    Doctor {
        /// Configuration file
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        #[command(flatten)]
        options: Box<Options>,
    },
    /// Get a file from a transfer service
    Get(GetArgs),
    /// Put a file to a transfer service
    Put(PutArgs),
    /// Send the records of a file to a telemetry service, as the file grows
    Telemetry(TelemetryArgs),
    /// Send and receive messages on a message channel
    #[command(subcommand)]
    Messages(MessagesCommand),
    /// Order that Pis are installed anew when they boot next, or show what is ordered
    #[command(after_help = "DEVICE is a serial number (or the beginning of one that was seen), a hardware \
        address or an address. A running server heeds an order at once; it is done with when the Pi has \
        been installed, and not before.")]
    Reinstall {
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
    },
    /// Decide for a Pi that waits: order that what is on its disk is erased and that it is installed
    #[command(
        after_help = "Shows what is erased, and asks. The order is for this content of the disk alone: with \
        another disk in it, the Pi waits again and says so."
    )]
    Install(install::InstallArgs),
    /// Say what Pis have of their own: host names, accounts, Wi-Fi, files, scripts
    Profile(profile::ProfileArgs),
    /// Order that Pis apply their profiles when they boot next, without being installed anew
    #[command(
        after_help = "The system that is on the card stays, and so do its identity and its data. A Pi that cannot \
        do it boots all the same, says why, and tries again at its next boot."
    )]
    Personalise(personalise::PersonaliseArgs),
    /// Show or set what happens by what is on a Pi's disk
    #[command(
        after_help = "The Pi's own rule wins over its group's, that over everybody's, and that over the \
        configuration's. `boot` means to wait if the disk cannot be booted. A running server heeds a rule at once."
    )]
    Policy(policy::PolicyArgs),
    /// Show all Pis that were seen; add to the device list, remove from it and show it
    Devices {
        #[command(flatten)]
        state: StateFolder,
        /// Print JSON; times are milliseconds since 1970
        #[arg(long)]
        json: bool,
        /// Show what was ordered for them and what became of it
        #[arg(long, conflicts_with = "json")]
        history: bool,
        /// Show those that wait because they have not shown who they are, and those that are not in the device list, with
        /// the command that lets each in
        #[arg(long, conflicts_with_all = ["json", "history"])]
        pending: bool,
        #[command(subcommand)]
        list: Option<ListCommand>,
    },
    /// Show one Pi, and what happened to it
    Device {
        #[command(flatten)]
        state: StateFolder,
        /// Print JSON; times are milliseconds since 1970
        #[arg(long)]
        json: bool,
        /// A serial number (or the beginning of one), a hardware address or an address
        #[arg(value_name = "DEVICE")]
        name: String,
    },
    /// Call a function of Pis that run and are connected, or of a server
    #[command(
        after_help = call_help(),
        override_usage = "piman call [OPTIONS] DEVICE FUNCTION [ARGS]...\n       piman call [OPTIONS] --server HOST FUNCTION [ARGS]..."
    )]
    Call {
        #[command(flatten)]
        state: StateFolder,
        /// Print JSON
        #[arg(long)]
        json: bool,
        /// How long each Pi may take
        #[arg(long, value_name = "TIME", default_value = "30s")]
        timeout: HumanDuration,
        #[command(flatten)]
        direct: rpc::Direct,
        /// A serial number (or the beginning of one), a hardware address, an address, or `all`; `ADDRESS#2` is
        /// the second old peer at an address, as `piman status` shows it. Not with --server
        #[arg(value_name = "DEVICE")]
        device: String,
        /// The name of a function, or its opcode
        #[arg(value_name = "FUNCTION", required_unless_present = "server", allow_hyphen_values = true)]
        function: Option<String>,
        /// Arguments: JSON where it is such, otherwise texts. NAME=VALUE gives one by name, after those by
        /// place (not for `run`, whose hook gets it as it is)
        #[arg(value_name = "ARGS", allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Show how all Pis are that run and are connected
    Status {
        #[command(flatten)]
        state: StateFolder,
        /// Print JSON
        #[arg(long)]
        json: bool,
        /// How long each Pi may take
        #[arg(long, value_name = "TIME", default_value = "5s")]
        timeout: HumanDuration,
    },
    /// Name archives and say who gets which; make, sign, list and check images
    Image(ImageArgs),
    /// Put Pis into groups, which have an image of their own
    #[command(subcommand)]
    Group(GroupCommand),
    /// Make the key that signs images, and certify servers with it
    #[command(subcommand)]
    Key(KeyCommand),
    /// See an installation on this machine, without a Pi and without root
    #[cfg(feature = "demo")]
    Demo(DemoArgs),
}

impl Cli {
    /// Sends the log to standard error.
    pub fn start_log(&self) {
        let filter = match self.verbose {
            // What a demonstration shows is not to be mixed with a log.
            #[cfg(feature = "demo")]
            0 if matches!(self.command, Command::Demo(_)) => "warn",
            0 => "info",
            1 => "info,piman=debug",
            _ => "debug",
        };
        let result = crate::logging::start(self.log_level.as_deref(), filter, self.log_format);
        if let Err(e) = result {
            crate::text::human::print_error(format_args!("piman: {e}"));
        }
    }

    /// Does what was asked for.
    ///
    /// # Errors
    /// With a message for whoever asked.
    pub fn run(self) -> anyhow::Result<()> {
        match self.command {
            Command::Serve { config, options } => {
                let merged = || -> anyhow::Result<_> {
                    let file = config.as_deref().map(Options::read).transpose()?.unwrap_or_default();
                    Ok(options.clone().or(file))
                };
                // All that is wrong, at once.
                let settings = |options: Options, state: Option<&Preview>| {
                    check::refuse(&check::contradictions(&options, state))?;
                    Settings::try_from(options)
                };
                let first = merged()?;
                // What stands in the way of looking at the state is said by the start.
                let state = state::preview(first.state.as_deref().unwrap_or(&state_folder())).ok();
                serve(settings(first, state.as_ref())?, |state: &Preview| settings(merged()?, Some(state)))
            }
            Command::Reinstall { state, list, cancel, devices } => {
                use crate::state::State as _;
                let state = state.open()?;
                if list {
                    return print(&reinstall::table(&state.orders()?));
                }
                print(&reinstall::reinstall(&state, &devices, cancel)?)
            }
            Command::Install(args) => print(&install::run(&args)?),
            Command::Policy(args) => print(&policy::run(&args)?),
            Command::Profile(args) => profile::run(&args),
            Command::Personalise(args) => print(&personalise::run(&args)?),
            Command::Devices { state, list: Some(command), .. } => print(&device_list::run(command, state)?),
            Command::Devices { state, pending: true, .. } => print(&device_list::pending(&state.open()?)?),
            Command::Devices { state, history: true, .. } => {
                use crate::state::State as _;
                print(&reinstall::table(&state.open()?.orders()?))
            }
            Command::Devices { state, json, .. } => print(&devices::all(&state.open()?, json)?),
            Command::Device { state, json, name } => print(&devices::one(&state.open()?, &name, json)?),
            Command::Get(args) => transfer::run_get(&args),
            Command::Put(args) => transfer::run_put(&args),
            Command::Messages(command) => messages::run(&command),
            Command::Telemetry(args) => telemetry::run(&args),
            Command::Call { state, json, timeout, direct, device, function, args } => {
                let within = timeout.0;
                if let Some(server) = direct.server.clone() {
                    // There is no device: everything is one place further in front.
                    let args = function.into_iter().chain(args).collect();
                    let wanted = call::Wanted { device: server, function: device, args, within, json };
                    let (text, well) = call::call_server(&direct, &wanted)?;
                    print(&text)?;
                    anyhow::ensure!(well, "the call failed on the server");
                    return Ok(());
                }
                let function = function.unwrap_or_default();
                let wanted = call::Wanted { device, function, args, within, json };
                outcome(call::call(&state.path()?, &wanted)?)
            }
            Command::Status { state, json, timeout } => {
                outcome(call::status(&state.path()?, timeout.0, json)?)
            }
            Command::Netboot(command) => print(&netboot::run(command)?),
            Command::Doctor { config, options } => {
                let file = config.as_deref().map(Options::read).transpose()?.unwrap_or_default();
                let checkup = doctor::examine(options.or(file));
                print(&checkup.describe())?;
                checkup.verdict()
            }
            Command::Image(args) => image::run(&args),
            Command::Group(command) => print(&catalog::group(&command)?),
            Command::Key(command) => print(&key::run(&command)?),
            #[cfg(feature = "demo")]
            Command::Demo(args) => demo::run(&args),
        }
    }
}

fn serve(settings: Settings, read: impl Fn(&Preview) -> anyhow::Result<Settings>) -> anyhow::Result<()> {
    let server = Server::start_alone(settings)?;
    let signals = server.signals()?;
    let at = server.addresses();
    let install = at.install.as_ref();
    let mut text = String::new();
    for (name, address) in [
        ("control", install.map(|i| i.control)),
        ("rootfs", install.map(|i| i.rootfs)),
        ("fetch", install.map(|i| i.fetch)),
        ("transfer", at.transfer),
        ("telemetry", at.telemetry),
        ("rpc", at.rpc),
        ("tftp", at.tftp),
        ("http-boot", at.http_boot),
    ] {
        text += &address.map(|a| format!("{name} {a}\n")).unwrap_or_default();
    }
    for (name, address) in &at.messages {
        text += &format!("{name} {address}\n");
    }
    text += &at.dhcp.as_ref().map(|place| format!("dhcp {place}\n")).unwrap_or_default();
    print(&text)?;
    server.run(signals, read);
    Ok(())
}

/// The exit code for what went wrong: 1, or the one that the command documents.
#[must_use]
pub fn exit_code(e: &anyhow::Error) -> u8 {
    if let Some(e) = e.downcast_ref::<TransferError>() {
        return e.exit_code();
    }
    if let Some(e) = e.downcast_ref::<MessagesError>() {
        return e.exit_code();
    }
    if e.is::<Unreachable>() { Unreachable::EXIT_CODE } else { 1 }
}

/// What functions there are.
fn call_help() -> String {
    let mut text = "Functions of piman's own agent:\n".to_owned();
    for Function { opcode, name, help } in FUNCTIONS {
        text.push_str(&format!("  {name:10} {opcode:3}  {help}\n"));
    }
    text.push_str(
        "\nIn arguments, and in what --json prints, values that JSON has no word for are objects with one key:\n  \
         {\"$bytes\": \"00ff\"}  {\"$float\": \"inf\"}  {\"$tuple\": [1, 2]}  {\"$set\": [1, 2]}\n  \
         {\"$dict\": [[1, \"a\"]]} (keys that are no texts); in results {\"$class\": ...} and {\"$object\": ...} too\n\
         A text that looks like JSON or NAME=VALUE is written in double quotes: '\"a=b\"'\n",
    );
    text
}

/// Prints what came of calls; that one of them failed is an error.
fn outcome((text, well): (String, bool)) -> anyhow::Result<()> {
    print(&text)?;
    if well { Ok(()) } else { Err(anyhow::anyhow!("not every Pi did it")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }
}

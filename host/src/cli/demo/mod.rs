//! `piman demo`: the main job on any machine, as an ordinary user, without a Pi. A server on
//! loopback, a virtual card, the agent between them; then the result is proved.

mod rootfs;
mod show;
mod verify;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;
use pi_agent::control::{self, Machine};
use pi_agent::identity::Identity;
use pi_agent::install::{Choice, Consent, Keep, Outcome, Plan, TELL_TIME};
use pi_agent::telemetry::progress::Progress;
use piman_core::install::layout::Layout;

use crate::config::{Options, Settings};
use crate::server::Server;
use crate::text::human::print;

/// What a demonstration is told.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// The archive to install [default: a small one is made]
    #[arg(long, value_name = "FILE")]
    rootfs: Option<PathBuf>,
    /// Where the card, the archive and the server's state are kept
    /// [default: piman-demo in the folder for temporary files]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// The size of the virtual card, as 8G or 512M
    #[arg(long, value_name = "SIZE", default_value = "8G", value_parser = crate::text::human::size)]
    size: u64,
}

/// How long the server may take to end when all is done.
const STOP: Duration = Duration::from_secs(5);

/// Runs it.
///
/// # Errors
/// What went wrong, with what was being done; or that the result is not what it should be.
pub fn run(args: &DemoArgs) -> anyhow::Result<()> {
    let dir = args.dir.clone().unwrap_or_else(default_dir);
    fs::create_dir_all(&dir).with_context(|| format!("making the folder {}", dir.display()))?;
    let card = dir.join("card.img");
    remove(&card)?;

    let archive = match &args.rootfs {
        Some(path) => path.clone(),
        None => make_rootfs(&dir)?,
    };
    let server = start(&archive, &dir.join("state"))?;
    let at = server.addresses().install.context("the server does not install")?;
    print(&format!(
        "server      control {}, rootfs {}, fetch {}\ncard        {} ({} bytes, sparse)\n",
        at.control,
        at.rootfs,
        at.fetch,
        card.display(),
        args.size
    ))?;

    let plan = Plan {
        server: control::Server {
            host: at.control.ip().to_string(),
            control_port: at.control.port(),
            rootfs_port: at.rootfs.port(),
        },
        disk: card.clone().into(),
        size: Some(args.size),
        layout: Layout::default(),
        discard: false,
        keep: Keep::default(),
        choice: Choice::Image,
        yes: false,
        erase: Consent::default(),
        trust_unmarked: false,
        reinstall: false,
        identity: Identity {
            serial: Some("00000000de000001".into()),
            mac: None,
            model: Some("piman demo".into()),
        },
        key: None,
        device: None,
        boot_from: None,
        service: None,
        tell_time: TELL_TIME,
    };
    let progress = Arc::new(Progress::new());
    let shown = show::Show::start(Arc::clone(&progress));
    let began = Instant::now();
    let outcome = pi_agent::install::run(&plan, 3, &mut Machine::default(), &progress);
    let took = began.elapsed();
    shown.end();
    server.stop(STOP);
    let outcome = outcome.context("the installation failed")?;
    let Outcome::Installed { image, received, written, took: writing, .. } = outcome else {
        bail!("the server said boot to an empty card: this is a defect of piman");
    };
    print(&format!(
        "installed   image {image:.16} in {:.1} s, {:.1} s of it on the card: {} received, {} written\n",
        took.as_secs_f64(),
        writing.as_secs_f64(),
        show::size(received),
        show::size(written)
    ))?;
    verify::all(&card, &archive, image)?;
    next_steps(&card, &dir)
}

/// A folder of this user's own: in a folder that all share, another one's would be in the way.
fn default_dir() -> PathBuf {
    let user = rustix::process::getuid().as_raw();
    std::env::temp_dir().join(format!("piman-demo-{user}"))
}

fn remove(card: &Path) -> anyhow::Result<()> {
    match fs::remove_file(card) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("removing the card of an earlier run, {}", card.display()))
        }
        _ => Ok(()),
    }
}

fn make_rootfs(dir: &Path) -> anyhow::Result<PathBuf> {
    let path = dir.join("rootfs.tgz");
    let began = Instant::now();
    rootfs::make(&path)?;
    print(&format!(
        "archive     {} ({}), made in {:.1} s; --rootfs FILE takes your own\n",
        path.display(),
        show::size(fs::metadata(&path)?.len()),
        began.elapsed().as_secs_f64()
    ))?;
    Ok(path)
}

fn start(archive: &Path, state: &Path) -> anyhow::Result<Server> {
    let settings = Settings::try_from(Options {
        rootfs: Some(archive.to_owned()),
        listen: Some(std::net::Ipv4Addr::LOCALHOST.into()),
        control_port: Some(0),
        rootfs_port: Some(0),
        fetch_port: Some(0),
        state: Some(state.to_owned()),
        // It boots nowhere.
        allow_unfit: Some(true),
        ..Options::default()
    })?;
    Server::start(settings).context("starting the server")
}

fn next_steps(card: &Path, dir: &Path) -> anyhow::Result<()> {
    let (card, dir) = (card.display(), dir.display());
    print(&format!(
        "
What next:
  look into it     sudo mount -o loop,offset=50331648 {card} /mnt
  serve your own   piman serve --rootfs rootfs.tgz
  a real card      sudo pi-agent install --server HOST --disk /dev/sdX
  tidy up          rm -r {dir}
"
    ))
}

//! Path A alone, to be measured: `stream HOST:PORT DIR` extracts what the server sends into a
//! directory of a mounted filesystem, syncs it, and says how long that took.

use std::fs::File;
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::time::Instant;

use anyhow::{Context, Result};
use pi_agent::telemetry::progress::Progress;
use pi_agent::unpack::install;

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let (server, root) = (args.next().context("HOST:PORT")?, args.next().context("DIR")?);
    let begun = Instant::now();
    let root = File::open(root)?;
    let summary = install(TcpStream::connect(server)?, None, root.as_fd(), &Progress::new())?;
    let extracted = begun.elapsed();
    rustix::fs::syncfs(&root)?;
    println!(
        "{:.2} s, of these {:.2} before the sync: {summary:?}",
        begun.elapsed().as_secs_f64(),
        extracted.as_secs_f64()
    );
    Ok(())
}

//! The port that sends the whole archive to whoever connects, and never reads a request.

use std::io::{self, ErrorKind};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::images::source::Archive;
use crate::net::min_rate::Watch;
use crate::net::sendfile;
use crate::net::socket::{reset_at_close, tune};
use crate::provision::context::InstallContext;
use crate::provision::legacy::Advance;
use crate::state::{Change, Identity};

/// How often the progress of a transfer is noted.
const NOTE: Duration = Duration::from_millis(500);
/// How long a Pi waits for an archive that is good.
const ARCHIVE_WAIT: Duration = Duration::from_secs(600);

/// How long a Pi that has everything may take to close.
const PART: Duration = Duration::from_secs(60);

/// Sends the archive on one connection.
pub async fn send(stream: TcpStream, address: IpAddr, service: Arc<InstallContext>) {
    tune(&stream);
    let pi = service.who(address);
    let busy = service.drain.transfer();
    let good = async {
        service.may_download(&pi).map_err(io::Error::other)?;
        match service.catalog.of(&pi) {
            Ok(source) => Ok(timeout(ARCHIVE_WAIT, source.good()).await),
            Err(reason) => Err(io::Error::other(reason)),
        }
    };
    let ended = match good.await {
        Ok(Ok((archive, _))) if archive.is_disk() => {
            Err(io::Error::other("it is assigned the image of a whole disk, which this port does not send"))
        }
        Ok(Ok((archive, _))) => transfer(&stream, &pi, &archive, &service).await,
        Ok(Err(_)) => Err(io::Error::other("there is still no archive that can be installed")),
        Err(e) => Err(e),
    };
    let Err(e) = ended else {
        drop(busy);
        part(stream).await;
        return;
    };
    // Not whole: the Pi must see an error, and not an end that looks like the archive's.
    reset_at_close(&stream);
    match e.kind() {
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::ConnectionAborted => {
            pi.log("archive", "the archive's transfer was ended by the Pi");
        }
        _ => {
            let text = format!("the archive's transfer was broken off: {e}");
            let change = Change { error: Some(Some(text.as_str().into())), ..Change::of(pi.clone()) };
            service.happened(&pi, "error", text, change);
        }
    }
}

async fn transfer(
    stream: &TcpStream,
    pi: &Identity,
    archive: &Archive,
    service: &InstallContext,
) -> io::Result<()> {
    let mut line = service.line_up(pi.clone());
    let _slot = loop {
        // What says how many are first reaches an old Pi nowhere.
        if let Ok(slot) = line.turn().await {
            break slot;
        }
    };
    drop(line);
    let began = Instant::now();
    pi.log("archive", &format!("gets the archive, {} bytes", archive.bytes()));
    let old = pi.serial.is_none() && pi.mac.is_none();
    let mut noted = began;
    let mut watch = Watch::new(stream, service.settings().old)?;
    sendfile::send(stream, archive.file(), 0, archive.bytes(), &mut watch, |sent| {
        // Our own agents report what they have done, which is what counts.
        if old && noted.elapsed() >= NOTE {
            noted = Instant::now();
            service.recorder.note(Change {
                stage: Some("transfer".into()),
                progress: Some((sent, archive.bytes())),
                ..Change::of(pi.clone())
            });
        }
        archive.unchanged()
    })
    .await?;
    watch.delivered(archive.bytes()).await?;
    let seconds = began.elapsed().as_secs_f64();
    let rate = archive.bytes() as f64 / seconds.max(1e-6) / 1e6;
    let mut change = Change::of(pi.clone());
    if old {
        change.progress = Some((archive.bytes(), archive.bytes()));
    }
    service.happened(
        pi,
        "archive",
        format!("got the whole archive in {seconds:.1} s ({rate:.0} MB/s)"),
        change,
    );
    service.advance(pi.address, Advance::Downloaded(began));
    Ok(())
}

/// Waits, for a while, until the peer closes too; a close with bytes unread would be a reset.
async fn part(mut stream: TcpStream) {
    // It has everything: how it ends its own direction is its own affair.
    let _ = timeout(PART, tokio::io::copy(&mut stream, &mut tokio::io::sink())).await;
}

//! The port that sends the whole archive to whoever connects, and never reads a request.

use std::io::{self, ErrorKind};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use crate::archive::Archive;
use crate::sendfile;
use crate::service::{Advance, Service};
use crate::state::{Change, Identity};
use crate::transport::{reset_at_close, tune};

/// How often the progress of a transfer is noted.
const NOTE: Duration = Duration::from_millis(500);
/// How long a Pi waits for an archive that is good.
const ARCHIVE_WAIT: Duration = Duration::from_secs(600);

/// Sends the archive on one connection.
pub async fn send(mut stream: TcpStream, address: IpAddr, service: Arc<Service>) {
    tune(&stream, service.settings.stall);
    let pi = service.who(address);
    let _busy = service.busy.transfer();
    let good = async {
        match service.library.of(&pi) {
            Ok(source) => Ok(timeout(ARCHIVE_WAIT, source.good()).await),
            Err(reason) => Err(io::Error::other(reason)),
        }
    };
    let ended = match good.await {
        Ok(Ok((archive, _))) => transfer(&mut stream, &pi, &archive, &service).await,
        Ok(Err(_)) => Err(io::Error::other("there is still no archive that can be installed")),
        Err(e) => Err(e),
    };
    let Err(e) = ended else { return };
    // Not whole: the Pi must see an error, and not an end that looks like the archive's.
    reset_at_close(&stream);
    match e.kind() {
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::ConnectionAborted => {
            log::info!("{pi}: the archive's transfer was ended by the Pi");
        }
        _ => {
            let text = format!("the archive's transfer was broken off: {e}");
            let change = Change { error: Some(Some(text.as_str().into())), ..Change::of(pi.clone()) };
            service.happened(&pi, "error", text, change);
        }
    }
}

async fn transfer(
    stream: &mut TcpStream,
    pi: &Identity,
    archive: &Archive,
    service: &Service,
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
    log::info!("{pi}: gets the archive, {} bytes", archive.bytes());
    let old = pi.serial.is_none() && pi.mac.is_none();
    let mut noted = began;
    sendfile::send(stream, archive.file(), 0, archive.bytes(), service.settings.stall, |sent| {
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
    delivered(stream, service.settings.stall).await?;
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

/// Ends our direction and waits until the peer's system has acknowledged every byte. What the
/// peer sends is read and dropped: unread bytes would turn the end into a reset, and the
/// peer would lose what is still on its way.
async fn delivered(stream: &mut TcpStream, at_most: Duration) -> io::Result<()> {
    stream.shutdown().await?;
    let end = async {
        let mut bin = [0; 512];
        loop {
            stream.ready(Interest::READABLE).await?;
            match stream.try_read(&mut bin) {
                Ok(0) => break,
                Ok(_) => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                Err(e) => return Err(e),
            }
        }
        // Whoever ended its own direction long ago may still be receiving. The socket has no
        // peer any more when both directions are over and acknowledged.
        let mut pause = Duration::from_millis(1);
        loop {
            match stream.peer_addr() {
                Err(e) if e.kind() == ErrorKind::NotConnected => break,
                Err(e) => return Err(e),
                Ok(_) => sleep(pause).await,
            }
            pause = (pause * 2).min(Duration::from_millis(200));
        }
        match stream.take_error()? {
            Some(e) => Err(e),
            None => Ok(()),
        }
    };
    match timeout(at_most + Duration::from_secs(1), end).await {
        Ok(ended) => ended,
        // The peer keeps its end open. Unacknowledged bytes would have been an error by now.
        Err(_) => Ok(()),
    }
}

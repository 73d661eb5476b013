//! HTTP boot as a part of a server: the files of the boot folder, over the small HTTP server.

use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::Arc;

use tokio::runtime::Runtime;
use tokio::task::{JoinHandle, spawn_blocking};

use crate::net::drain::Drain;
use crate::net::http::serve::Content;
use crate::net::http::{Body, Ended, Files, Limits, Refusal, run};
use crate::net::listen::{Gate, bind};
use crate::netboot::http_boot::{Bytes, HttpBoot, Opened};
use crate::netboot::tftp::What;
use crate::netboot::tftp::folder::NoFile;

/// The port of HTTP boot, open.
#[derive(Debug)]
pub(super) struct Bound {
    listener: TcpListener,
    /// Where it listens.
    pub(super) address: SocketAddr,
    gate: Arc<Gate>,
}

impl Bound {
    /// Opens the port.
    ///
    /// # Errors
    /// If it cannot be used; the message says what to do.
    pub(super) fn open(ip: IpAddr, port: u16, gate: Arc<Gate>) -> anyhow::Result<Self> {
        let listener = bind(ip, port, "--http-boot-port")?;
        let address = listener.local_addr()?;
        Ok(Self { listener, address, gate })
    }

    /// Answers from now on, until the task is aborted.
    pub(super) fn start(self, files: HttpBoot, drain: &Drain, on: &Runtime) -> JoinHandle<()> {
        let folder = Arc::new(BootFolder { files: Arc::new(files), drain: drain.clone() });
        on.spawn(async move {
            if let Err(e) = run(self.listener, self.gate, Limits::default(), folder).await {
                tracing::error!("{e:#}");
            }
        })
    }
}

struct BootFolder {
    files: Arc<HttpBoot>,
    drain: Drain,
}

impl Files for BootFolder {
    async fn open(&self, address: IpAddr, path: &str) -> Result<Body, Refusal> {
        let (files, path) = (Arc::clone(&self.files), path.to_owned());
        let found = spawn_blocking(move || files.open(address, &path).map_err(|e| refusal(&e))).await;
        let failed = || Refusal { status: 500, text: "the server is stopping".to_owned() };
        let Opened { bytes, length, name, tag, modified } = found.map_err(|_| failed())??;
        let content = match bytes {
            Bytes::File(file) => Content::File(file),
            Bytes::Memory(bytes) => Content::Bytes(bytes),
        };
        Ok(Body { name, content, length, tag, modified, busy: self.drain.transfer() })
    }

    fn ended(&self, ended: Ended) {
        let Ended { address, path, name, to_the_end, bytes, took, failed } = ended;
        let what = match failed {
            None if to_the_end => What::Sent { name, bytes, took, sent_twice: 0 },
            // A client that fetches a file in pieces is one line, at its end.
            None => return,
            Some(e) => What::Failed(e.to_string()),
        };
        let files = Arc::clone(&self.files);
        // It may have to wait for the state.
        drop(spawn_blocking(move || files.sent(address, &path, &what)));
    }
}

/// What whoever asks is told.
fn refusal(e: &NoFile) -> Refusal {
    let status = match e {
        NoFile::Missing => 404,
        NoFile::Outside | NoFile::NotListed => 403,
        NoFile::NoPair => 503,
        _ => 500,
    };
    // The rest is the operator's business, and is in the log.
    let text = if status == 500 { "the file cannot be read".to_owned() } else { e.to_string() };
    Refusal { status, text }
}

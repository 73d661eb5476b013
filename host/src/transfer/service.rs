//! The service: a listener, its connections, and the broom.

use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;

use super::serve::Transfers;
use crate::net::listen::{Gate, Pass, accept};

/// How often it is looked for what was broken off.
const SWEEP: Duration = Duration::from_secs(600);

/// Serves the folder on `listener` for ever. What was broken off stays for `keep` to be resumed.
/// `begin` is told of every connection, and what it returns is kept until the end of it.
///
/// # Errors
/// If the listener cannot be used at all.
pub async fn run<G: Send + 'static>(
    listener: std::net::TcpListener,
    gate: Arc<Gate>,
    transfers: Arc<Transfers>,
    keep: Duration,
    begin: impl Fn(&TcpStream) -> G + Send + Sync + 'static,
) -> anyhow::Result<()> {
    let serve = {
        let transfers = transfers.clone();
        move |stream: TcpStream, address, pass: Pass| {
            let (transfers, busy) = (transfers.clone(), begin(&stream));
            pass.serve(async move {
                let served = transfers.serve(stream).await;
                crate::log_at!(served.level(), "transfer: {address}: {served}");
                drop(busy);
            })
        }
    };
    let sweep = async {
        loop {
            let folder = transfers.folder().clone();
            match tokio::task::spawn_blocking(move || folder.sweep(keep)).await {
                Ok(0) | Err(_) => {}
                Ok(n) => {
                    tracing::info!("transfer: {n} broken uploads were not taken up again and are removed")
                }
            }
            tokio::time::sleep(SWEEP).await;
        }
    };
    tokio::select! {
        end = accept(listener, gate, serve) => end,
        () = sweep => Ok(()),
    }
}

//! Sends its arguments as messages and prints what comes back.
//! `cargo run --example frames_echo_client ADDRESS MESSAGE...`

use std::time::Duration;

use anyhow::Context;
use piman::frame::{Hooks, Peer, Settings, connect};
use tokio::sync::mpsc;
use tokio::time::timeout;

/// Hands on what comes.
struct Forward(mpsc::Sender<Vec<u8>>);

impl Hooks for Forward {
    fn message(&mut self, peer: &Peer, message: Vec<u8>) {
        if self.0.try_send(message).is_err() {
            peer.close();
        }
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let server = args.next().context("give the address of the server, and messages")?;
    let (forward, mut echoes) = mpsc::channel(16);
    let peer = connect(server, Duration::from_secs(5), Settings::default(), None, Forward(forward)).await?;
    for message in args {
        peer.send(message.into_bytes()).await?;
        let echo = timeout(Duration::from_secs(5), echoes.recv()).await.context("no echo within 5 s")?;
        println!("{}", String::from_utf8_lossy(&echo.context("the server closed the connection")?));
    }
    peer.close();
    Ok(())
}

//! The smallest server of messages: it sends every message back.
//! `cargo run --example frames_echo_server [ADDRESS...]`, and then `piman messages send --reply ADDRESS hello`.

use std::net::SocketAddr;
use std::time::Duration;

use piman::messages::transport::{Failure, Hooks, Peer, Plan, Server, Settings};

struct Echo;

impl Hooks for Echo {
    fn start(&mut self, peer: &Peer) {
        println!("{peer} is here");
    }

    fn message(&mut self, peer: &Peer, message: Vec<u8>) {
        if let Err(e) = peer.queue(message) {
            eprintln!("{peer}: {e}");
        }
    }

    fn close(&mut self, peer: &Peer, why: Option<&Failure>) {
        match why {
            Some(why) => println!("{peer} is gone: {why}"),
            None => println!("{peer} is gone"),
        }
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut addresses: Vec<SocketAddr> =
        std::env::args().skip(1).map(|a| a.parse()).collect::<Result<_, _>>()?;
    if addresses.is_empty() {
        addresses.push(([127, 0, 0, 1], piman_core::messages::PORT).into());
    }
    let server = Server::start(Plan {
        addresses,
        connections: 100,
        settings: Settings::default(),
        plugins: None,
        hooks: || Echo,
    })?;
    for address in server.addresses() {
        println!("listening on {address}; Ctrl-C ends");
    }
    tokio::signal::ctrl_c().await?;
    let cut = server.stop(Duration::from_secs(5)).await;
    println!("stopped, {cut} connections were cut");
    Ok(())
}

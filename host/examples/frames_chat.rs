//! A chat that several terminals join.
//!
//! `cargo run --example frames_chat serve 127.0.0.1:9123` in one terminal, and in others
//! `cargo run --example frames_chat join 127.0.0.1:9123 NAME`; what is typed there, all see.

use std::collections::HashMap;
use std::io::BufRead;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};
use piman::frame::{Failure, Hooks, Peer, Plan, Server, Settings, connect};
use tokio::sync::mpsc;

/// Everybody who is in the room.
type Room = Arc<Mutex<HashMap<SocketAddr, Peer>>>;

/// One of them, seen from the server. The first message is the name.
struct Guest {
    room: Room,
    name: Option<String>,
}

impl Guest {
    /// Tells all others.
    fn tell(&self, from: &Peer, text: &str) {
        println!("{text}");
        let room = self.room.lock().unwrap_or_else(PoisonError::into_inner);
        for peer in room.values().filter(|p| p.address() != from.address()) {
            // Who is too slow to read misses it.
            let _ = peer.queue(text.as_bytes());
        }
    }
}

impl Hooks for Guest {
    fn message(&mut self, peer: &Peer, message: Vec<u8>) {
        let text = String::from_utf8_lossy(&message);
        let text: String = text.chars().filter(|c| !c.is_control()).take(400).collect();
        match &self.name {
            Some(name) => self.tell(peer, &format!("{name}: {text}")),
            None => {
                self.room.lock().unwrap_or_else(PoisonError::into_inner).insert(peer.address(), peer.clone());
                self.tell(peer, &format!("{text} is here"));
                self.name = Some(text);
            }
        }
    }

    fn close(&mut self, peer: &Peer, _why: Option<&Failure>) {
        self.room.lock().unwrap_or_else(PoisonError::into_inner).remove(&peer.address());
        if let Some(name) = self.name.take() {
            self.tell(peer, &format!("{name} is gone"));
        }
    }
}

/// A terminal: prints what comes.
struct Print;

impl Hooks for Print {
    fn message(&mut self, _peer: &Peer, message: Vec<u8>) {
        println!("{}", String::from_utf8_lossy(&message));
    }

    fn close(&mut self, _peer: &Peer, why: Option<&Failure>) {
        if let Some(why) = why {
            eprintln!("the connection is lost: {why}");
        }
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["serve", address] => serve(address.parse()?).await,
        ["join", server, name] => join(server, name).await,
        _ => bail!("usage: frames_chat serve ADDRESS | frames_chat join ADDRESS NAME"),
    }
}

async fn serve(address: SocketAddr) -> anyhow::Result<()> {
    let room = Room::default();
    let server = Server::start(Plan {
        addresses: vec![address],
        connections: 100,
        settings: Settings { limit: 4096, ..Settings::default() },
        plugins: None,
        hooks: move || Guest { room: Arc::clone(&room), name: None },
    })?;
    println!("the chat is open on {}; Ctrl-C closes it", server.addresses().first().unwrap_or(&address));
    tokio::signal::ctrl_c().await?;
    server.stop(Duration::from_secs(1)).await;
    Ok(())
}

async fn join(server: &str, name: &str) -> anyhow::Result<()> {
    let peer = connect(server, Duration::from_secs(5), Settings::default(), None, Print).await?;
    peer.send(name.as_bytes()).await?;
    let (typed, mut lines) = mpsc::channel::<String>(1);
    // Standard input can only be waited for in a thread.
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if typed.blocking_send(line).is_err() {
                break;
            }
        }
    });
    loop {
        tokio::select! {
            line = lines.recv() => match line {
                Some(line) => peer.send(line.into_bytes()).await.context("saying it")?,
                None => break,
            },
            () = peer.closed() => bail!("the chat is closed"),
        }
    }
    peer.close();
    peer.closed().await;
    Ok(())
}

//! A Pi on embassy: asks piman what to do over embassy-net, and logs all of it by defmt. Arguments: the server's
//! address and the port of its control connection. `.ci/run firmware` runs it in QEMU against the real server.
#![no_std]
#![no_main]

mod ethernet;
mod time;

use core::fmt::Write;

use defmt_semihosting as _;
use embassy_executor::Spawner;
use embassy_net::tcp::{ConnectError, TcpSocket};
use embassy_net::{Config, IpEndpoint, Runner, Stack, StackResources};
use embassy_time::{Duration, Timer};
use piman_board::semihosting::{arguments, exit};
use piman_core::Error;
use piman_core::install::drive::{Pi, notify, run};
use piman_core::install::{Clock, Date, Decision, Hello, Notice, Paths, REVISION, Stage, Start};
use static_cell::StaticCell;

use crate::ethernet::Ethernet;

/// The serial number of this Pi.
const SERIAL: &str = "10000000000000e5";

/// What the server may ask of the board.
struct Board<'a> {
    stack: Stack<'a>,
}

impl Pi for Board<'_> {
    async fn set_date(&mut self, date: Date) -> bool {
        defmt::info!("the date is {}", date);
        true
    }

    async fn set_clock(&mut self, clock: Clock) -> bool {
        defmt::info!("the time is {}", clock);
        true
    }

    fn addresses(&mut self, out: &mut impl Write) {
        if let Some(config) = self.stack.config_v4() {
            let _ = write!(out, "{}", config.address.address());
        }
    }

    async fn wipe(&mut self) -> bool {
        // There is no card in this board. One that has a card erases it here, and may wait for it.
        true
    }

    fn waits(&mut self, reason: &[u8]) {
        defmt::info!("the server has this Pi wait: {=[u8]:a}", reason);
    }

    async fn pause(&mut self) {
        Timer::after(Duration::from_millis(100)).await;
    }
}

/// Why the Pi does not know what to do.
#[derive(defmt::Format)]
enum Failed {
    Arguments,
    Connect(ConnectError),
    Server(Error<embassy_net::tcp::Error>),
}

/// Connects to the server and asks it.
async fn ask(stack: Stack<'_>, server: IpEndpoint) -> Result<Decision, Failed> {
    let (mut received, mut sent) = ([0; 2048], [0; 2048]);
    let mut socket = TcpSocket::new(stack, &mut received, &mut sent);
    // Time-outs belong to the stream: a server that is silent for so long is lost.
    socket.set_timeout(Some(Duration::from_secs(30)));
    socket.connect(server).await.map_err(Failed::Connect)?;
    let start = Start {
        hello: Some(Hello {
            revision: REVISION,
            serial: Some(SERIAL),
            model: Some("mps2-an385"),
            agent: Some("embassy"),
            paths: Paths { stream: true, image: false },
            ..Hello::default()
        }),
        disk: None,
        installed: false,
    };
    defmt::debug!("asking {}: {}", server, start);
    let mut line = [0; 1024];
    let decision = run(&mut socket, &mut line, &start, &mut Board { stack }).await.map_err(Failed::Server)?;
    defmt::info!("decision: {}", decision);
    if let Decision::Format(Some(offer)) = &decision {
        // A real board installs now, and says how far it is; the server shows it.
        let notice = Notice::Progress { stage: Stage::Transfer, done: 0, total: offer.bytes };
        notify(&mut socket, notice).await.map_err(Failed::Server)?;
    }
    socket.close();
    // All of it has arrived when this returns.
    socket.flush().await.map_err(|e| Failed::Server(Error::Io(e)))?;
    Ok(decision)
}

fn server() -> Option<IpEndpoint> {
    let mut line = [0; 256];
    let mut words = arguments(&mut line).skip(1);
    Some(IpEndpoint::new(words.next()?.parse().ok()?, words.next()?.parse().ok()?))
}

/// Moves packets, for ever.
#[embassy_executor::task]
async fn network(mut runner: Runner<'static, Ethernet>) -> ! {
    runner.run().await
}

#[embassy_executor::main]
async fn main(spawner: Spawner) {
    static RESOURCES: StaticCell<StackResources<3>> = StaticCell::new();
    let Some(core) = cortex_m::Peripherals::take() else { exit(false) };
    time::start(core.SYST);
    let Some(ethernet) = Ethernet::start() else {
        defmt::error!("there is no LAN9118");
        exit(false)
    };
    // A board has a source of random numbers for this.
    let seed = 0x5eed;
    let config = Config::dhcpv4(Default::default());
    let (stack, runner) = embassy_net::new(ethernet, config, RESOURCES.init(StackResources::new()), seed);
    match network(runner) {
        Ok(task) => spawner.spawn(task),
        Err(e) => {
            defmt::error!("starting the network: {}", e);
            exit(false)
        }
    }
    stack.wait_config_up().await;
    defmt::info!("configured: {}", stack.config_v4());
    let result = match server() {
        Some(server) => ask(stack, server).await,
        None => Err(Failed::Arguments),
    };
    if let Err(e) = &result {
        defmt::error!("failed: {}", e);
    }
    exit(result.is_ok())
}

//! The table in `table.md`: what is on the disk, by what policy, with which order, and what happens then. Every cell
//! is done by the programs themselves, on a loop device of its own. What happened is judged by the disk and by the
//! server's record; what the programs say of it only names it.

mod agent;
mod disks;
mod old_pi;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use piman::state::{Sqlite, State as _};
use piman_tests::lab::{self, Root};
use piman_tests::server::Server;

use disks::{Content, Disks};

/// The table, as people read it.
const TABLE: &str = include_str!("table.md");

/// So many cells at a time.
const AT_A_TIME: usize = 2;

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pi {
    /// Our agent.
    Agent,
    /// The shell script that Pis had before.
    Old,
    /// The same, of a server with `--old-pis ask`.
    OldThatAsks,
}

/// What is ordered for it before it asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    None,
    /// `piman reinstall`, which names no content.
    Reinstall,
    /// `piman install` for what is on the disk.
    Install,
    /// `piman install` when another card was in the Pi; for an old Pi, when another Pi had the address.
    Another,
    /// `piman install` (of an old Pi, `piman reinstall`), taken back before the Pi asked.
    Cancelled,
}

const ORDERS: [(Order, &str); 5] = [
    (Order::None, "no order"),
    (Order::Reinstall, "`reinstall`"),
    (Order::Install, "`install`"),
    (Order::Another, "for another"),
    (Order::Cancelled, "cancelled"),
];

/// What is done in one cell.
#[derive(Debug, Clone, Copy)]
struct Cell {
    number: usize,
    pi: Pi,
    content: &'static Content,
    /// The action for what is on the disk.
    action: &'static str,
    order: Order,
}

impl Cell {
    /// Whether nobody has to set its policy.
    fn is_default(&self) -> bool {
        self.pi == Pi::Agent && self.action == self.content.default
    }

    /// What its row is called, in the first two columns.
    fn row(&self) -> (String, String) {
        let content = self.content.words;
        match self.pi {
            Pi::Agent => {
                let star = if self.is_default() { " *" } else { "" };
                (content.into(), format!("{}{star}", self.action))
            }
            Pi::Old => (format!("an old Pi, {content}"), self.action.into()),
            Pi::OldThatAsks => (format!("an old Pi, {content}, `--old-pis ask`"), self.action.into()),
        }
    }
}

/// The servers, and what they share.
struct Lab {
    root: Root,
    server: Server,
    state: Arc<Sqlite>,
    asks: Server,
    asks_state: Arc<Sqlite>,
    disks: Disks,
    layout: PathBuf,
    folder: tempfile::TempDir,
}

impl Lab {
    fn new() -> Self {
        let root = Root::new("decisions", 100_000);
        let folder = lab::memory();
        let layout = folder.path().join("layout");
        fs::write(&layout, "label-id: 0x12345678\n1 : start=2048, size=4096\n2 : start=8192\n").unwrap();
        let start = |name: &str, more: &[&str]| {
            let state = folder.path().join(name);
            let mut command = Server::strict(&root.archive, &state, more);
            let server = Server::start_by(command.args(["--allow-unfit", "--no-date"]), &state);
            server.wait_log("is good");
            (server, Arc::new(Sqlite::command(&state).unwrap()))
        };
        let (server, state) = start("state", &[]);
        let (asks, asks_state) = start("asks", &["--old-pis", "ask"]);
        let disks = Disks::make(&root, &server, &layout, folder.path());
        Self { root, server, state, asks, asks_state, disks, layout, folder }
    }

    /// What is on record of a Pi: why it may be formatted.
    fn reasons(state: &Sqlite, pi: &str) -> Vec<String> {
        let events = state.events(pi).unwrap();
        events.into_iter().filter(|e| e.kind == "reason").map(|e| e.text).collect()
    }

    fn card(&self, cell: &Cell) -> PathBuf {
        self.folder.path().join(format!("cell-{}.img", cell.number))
    }
}

/// What a recorded reason names: the order, or the policy.
fn by(reason: &str) -> &'static str {
    let reason = reason.split_once(": ").map_or(reason, |(_, reason)| reason);
    let (order, policy) = (reason.starts_with("order "), reason.starts_with("policy"));
    assert!(order != policy, "it names one of them: {reason}");
    if order { "order" } else { "policy" }
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
#[cfg_attr(lacks = "sfdisk", ignore = "needs sfdisk (fdisk)")]
#[cfg_attr(lacks = "nc", ignore = "needs nc (netcat-openbsd)")]
#[cfg_attr(
    lacks = "filesystems",
    ignore = "needs mkfs of btrfs, exfat, f2fs, ntfs, vfat and xfs, and cryptsetup"
)]
fn every_cell_of_the_table() {
    let began = Instant::now();
    let lab = Lab::new();
    println!("the disks are made after {:.1} s", began.elapsed().as_secs_f64());
    let cells = cells();
    let (next, seen) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()));
    thread::scope(|scope| {
        for _ in 0..AT_A_TIME {
            scope.spawn(|| {
                while let Some(cell) = cells.get(next.fetch_add(1, Ordering::Relaxed)) {
                    // The other cells are looked at, too: what failed stands in the table.
                    let happened = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| one(&lab, cell)));
                    let _ = fs::remove_file(lab.card(cell));
                    let word = happened.unwrap_or_else(|_| "FAILED".into());
                    seen.lock().unwrap_or_else(PoisonError::into_inner).insert(cell.number, word);
                }
            });
        }
    });
    let seen = seen.into_inner().unwrap_or_else(PoisonError::into_inner);
    let table = table(&cells, &seen);
    println!("{table}\n{} cells in {:.1} s", cells.len(), began.elapsed().as_secs_f64());
    assert!(cells.len() >= 120);
    if !TABLE.contains(&table) {
        let new = Path::new(env!("CARGO_TARGET_TMPDIR")).join("table.md");
        fs::write(&new, &table).unwrap();
        let wrong = table.lines().filter(|line| !TABLE.contains(line)).collect::<Vec<_>>().join("\n");
        panic!(
            "what happens is not what tests/install/decisions/table.md says (all of it is in {}):\n{wrong}",
            new.display()
        );
    }
}

fn cells() -> Vec<Cell> {
    let mut cells = Vec::new();
    let mut row = |pi, content, action| {
        for (order, _) in ORDERS {
            cells.push(Cell { number: cells.len(), pi, content, action, order });
        }
    };
    for content in &disks::CONTENTS {
        for action in ["install", "boot", "wait"] {
            row(Pi::Agent, content, action);
        }
    }
    for content in disks::CONTENTS.iter().filter(|content| content.old) {
        for action in ["install", "boot", "wait"] {
            row(Pi::Old, content, action);
        }
        row(Pi::OldThatAsks, content, "-");
    }
    cells
}

/// Does what a cell says, and says what happened.
fn one(lab: &Lab, cell: &Cell) -> String {
    match cell.pi {
        Pi::Agent => agent::cell(lab, cell),
        Pi::Old => old_pi::cell(lab, cell, &lab.server, &lab.state),
        Pi::OldThatAsks => old_pi::cell(lab, cell, &lab.asks, &lab.asks_state),
    }
}

/// All cells, for people.
fn table(cells: &[Cell], seen: &BTreeMap<usize, String>) -> String {
    let heads = ["on the disk", "policy"].into_iter().chain(ORDERS.map(|(_, head)| head));
    let mut rows = vec![heads.map(String::from).collect::<Vec<_>>()];
    for row in cells.chunks(ORDERS.len()) {
        let (disk, policy) = row[0].row();
        let happened = row.iter().map(|cell| seen.get(&cell.number).cloned().unwrap_or_default());
        rows.push([disk, policy].into_iter().chain(happened).collect());
    }
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..rows[0].len()).map(width).collect();
    rows.insert(1, widths.iter().map(|width| "-".repeat(*width)).collect());
    let mut text = String::new();
    for row in rows {
        for (cell, width) in row.iter().zip(&widths) {
            // Writing to a string does not fail.
            let _ = write!(text, "| {cell:width$} ");
        }
        text.push_str("|\n");
    }
    text
}

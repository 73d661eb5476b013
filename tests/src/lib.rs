//! What the tests share.

pub mod bench;
pub mod binaries;
pub mod cable;
pub mod card;
pub mod chance;
pub mod contents;
pub mod dialogue;
pub mod disk;
pub mod fetch;
pub mod first_write;
pub mod lab;
pub mod link;
pub mod memory;
pub mod netns;
pub mod port;
pub mod proxy;
pub mod reader;
pub mod rogue;
pub mod running;
pub mod server;
pub mod small;
pub mod stack;
pub mod tar;
pub mod terminal;
pub mod tree;
pub mod wait;

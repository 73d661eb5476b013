//! `piman-decode FIRMWARE <FRAMES`: one line for each frame that the firmware logged by defmt.

use std::io::Read as _;

use anyhow::{Context as _, bail};
use defmt_decoder::{DecodeError, Table};

fn main() -> anyhow::Result<()> {
    let path = std::env::args().nth(1).context("say which firmware logged it")?;
    let elf = std::fs::read(&path).with_context(|| format!("reading {path}"))?;
    let table =
        Table::parse(&elf)?.with_context(|| format!("{path} was not linked with defmt: it has no .defmt"))?;
    let mut frames = Vec::new();
    std::io::stdin().read_to_end(&mut frames).context("reading the frames")?;
    let mut decoder = table.new_stream_decoder();
    decoder.received(&frames);
    loop {
        match decoder.decode() {
            Ok(frame) => println!("{}", frame.display(false)),
            Err(DecodeError::UnexpectedEof) => return Ok(()),
            Err(DecodeError::Malformed) => bail!("that is no frame of {path}"),
        }
    }
}

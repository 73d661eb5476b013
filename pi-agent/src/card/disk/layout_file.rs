//! Layouts as `sfdisk --dump` writes them.

use anyhow::{Context, anyhow, bail};
use piman_core::install::layout::{Layout, SECTOR, TableKind};

/// Reads a layout as `sfdisk --dump` writes it: `label-id`, and two partitions with `start=`
/// and `size=` in sectors; without a size the second reaches to the end of the disk.
///
/// # Errors
/// Says the line that cannot be used.
pub fn parse_layout(text: &str) -> anyhow::Result<Layout> {
    let mut layout = Layout { root_sectors: None, ..Layout::default() };
    let mut partitions = Vec::new();
    let mut scale = 1;
    for (number, line) in (1..).zip(text.lines()) {
        let bad = || format!("line {number} of the layout: {line}");
        let line = line.trim();
        if let Some(id) = line.strip_prefix("label-id:") {
            // That of a GPT is another one for each disk.
            if layout.table != TableKind::Gpt {
                let id = id.trim().trim_start_matches("0x");
                layout.disk_id = u32::from_str_radix(id, 16).with_context(bad)?;
            }
        } else if let Some(label) = line.strip_prefix("label:") {
            let kind = label.trim().parse().map_err(|_| anyhow!("only dos (MBR) and gpt are possible"));
            layout.table = kind.with_context(bad)?;
        } else if let Some(bytes) = line.strip_prefix("sector-size:") {
            let bytes: u64 = bytes.trim().parse().with_context(bad)?;
            if !matches!(bytes, 512 | 4096) {
                bail!("{}: only 512 and 4096 are possible", bad());
            }
            scale = bytes / SECTOR;
        } else if line.contains("start=") {
            partitions.push(partition_line(line).with_context(bad)?);
        } else if !(line.is_empty() || line.starts_with('#') || is_header(line)) {
            bail!("{}: not understood", bad());
        }
    }
    let [(boot_start, Some(boot_sectors)), (root_start, root_sectors)] = partitions[..] else {
        bail!("the layout must have two partitions, the first with a size");
    };
    // Sectors of a layout are those of 512 bytes.
    let scaled =
        |sectors: u64| sectors.checked_mul(scale).context("the layout has a number that is too large");
    Ok(Layout {
        boot_start: scaled(boot_start)?,
        boot_sectors: scaled(boot_sectors)?,
        root_start: scaled(root_start)?,
        root_sectors: root_sectors.map(scaled).transpose()?,
        ..layout
    })
}

fn is_header(line: &str) -> bool {
    ["device:", "unit:", "first-lba:", "last-lba:", "grain:", "table-length:"]
        .iter()
        .any(|h| line.starts_with(h))
}

fn partition_line(line: &str) -> anyhow::Result<(u64, Option<u64>)> {
    let fields = line.split_once(" : ").map_or(line, |(_, fields)| fields);
    let (mut start, mut size) = (None, None);
    for field in fields.split(',') {
        match field.split_once('=').map(|(k, v)| (k.trim(), v.trim())) {
            Some(("start", v)) => start = Some(v.parse().context("start= is no number of sectors")?),
            Some(("size", v)) => size = Some(v.parse().context("size= is no number of sectors")?),
            Some(("type" | "Id" | "uuid" | "name" | "attrs", _)) | None => {}
            Some((other, _)) => bail!("{other}= is not known"),
        }
    }
    Ok((start.context("start= is missing")?, size))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_old_dump() {
        let dump = "label: dos\nlabel-id: 0x5f5d7a31\ndevice: /dev/mmcblk0\nunit: sectors\n\n\
                    /dev/mmcblk0p1 : start=        8192, size=       88472, type=c\n\
                    /dev/mmcblk0p2 : start=       98304, type=83\n";
        assert_eq!(parse_layout(dump).unwrap(), Layout { table: TableKind::Mbr, ..Layout::default() });
        assert_eq!(parse_layout(&dump.replace("dos", "gpt")).unwrap().table, TableKind::Gpt);
        let sized = dump.replace("98304,", "98304, size= 4096,");
        assert_eq!(parse_layout(&sized).unwrap().root_sectors, Some(4096));
    }

    #[test]
    fn bad_layouts_name_the_line() {
        for (bad, word) in [
            ("label: sun\n", "line 1"),
            ("label-id: zz", "line 1"),
            ("\nhello", "line 2"),
            ("p1 : start=x, size=1", "start="),
            ("p1 : start=1, size=1, colour=red", "colour"),
            ("p1 : start=1, size=1", "two partitions"),
            ("p1 : start=1\np2 : start=9", "two partitions"),
        ] {
            let error = format!("{:#}", parse_layout(bad).unwrap_err());
            assert!(error.contains(word), "{error}");
        }
    }
}

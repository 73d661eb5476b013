//! Lines and words of small texts, changed where they stand.

/// The text in which the first line whose first field is `key` is `text`; without one it is at the end. A space as the
/// separator stands for any white space.
pub(super) fn with_line(bytes: &[u8], separator: u8, key: &[u8], text: &[u8]) -> Vec<u8> {
    let first = |line: &[u8]| {
        let line = line.trim_ascii_start();
        let is_end = |b: &u8| *b == separator || separator == b' ' && b.is_ascii_whitespace();
        line.split(is_end).next().is_some_and(|field| field.trim_ascii() == key)
    };
    let mut out = Vec::with_capacity(bytes.len() + text.len() + 2);
    let mut is_there = false;
    for line in bytes.split_inclusive(|b| *b == b'\n') {
        let plain = line.strip_suffix(b"\n").unwrap_or(line);
        if is_there || !first(plain) {
            out.extend(line);
            continue;
        }
        is_there = true;
        out.extend(text);
        out.push(b'\n');
    }
    if !is_there {
        if out.last().is_some_and(|b| *b != b'\n') {
            out.push(b'\n');
        }
        out.extend(text);
        out.push(b'\n');
    }
    out
}

/// The kernel's command line with `text` in place of the word that is `key` or begins with `key=`; of several the later
/// ones go, since the kernel takes the last. Without one it is at the end; an empty text takes all away. Whatever follows
/// the first line stays.
pub(super) fn with_word(bytes: &[u8], key: &[u8], text: &[u8]) -> Vec<u8> {
    let end = bytes.iter().position(|b| *b == b'\n').unwrap_or(bytes.len());
    let (line, rest) = bytes.split_at_checked(end).unwrap_or((bytes, b""));
    let is_it =
        |word: &[u8]| word.strip_prefix(key).is_some_and(|rest| rest.is_empty() || rest.starts_with(b"="));
    let mut new = Some(text).filter(|text| !text.is_empty());
    let mut words = Vec::new();
    for word in words_of(line) {
        match is_it(word) {
            true => words.extend(new.take()),
            false => words.push(word),
        }
    }
    words.extend(new);
    let mut out = words.join(&b' ');
    out.extend(if rest.is_empty() { b"\n" } else { rest });
    out
}

/// Words between white space; what stands in double quotes belongs together.
fn words_of(line: &[u8]) -> Vec<&[u8]> {
    let mut quoted = false;
    let is_end = |b: &u8| {
        quoted ^= *b == b'"';
        !quoted && b.is_ascii_whitespace()
    };
    line.split(is_end).filter(|word| !word.is_empty()).collect()
}

/// A table of filesystems (fstab) that mounts `device` at `place`: the line that mounts something there names it, and the
/// type where it says another; without one there is one at the end, with these `options`.
pub(super) fn with_mount(bytes: &[u8], device: &str, place: &str, (kind, options): (&str, &str)) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len() + 128);
    let mut is_there = false;
    for line in bytes.split_inclusive(|b| *b == b'\n') {
        let fields: Vec<&[u8]> =
            line.split(|b| b.is_ascii_whitespace()).filter(|field| !field.is_empty()).collect();
        let [name, at, fs, rest @ ..] = fields.as_slice() else {
            out.extend(line);
            continue;
        };
        let trimmed = at.strip_suffix(b"/").filter(|at| !at.is_empty()).unwrap_or(at);
        if is_there || name.starts_with(b"#") || trimmed != place.as_bytes() {
            out.extend(line);
            continue;
        }
        is_there = true;
        let fs = if *fs == b"auto" { fs } else { kind.as_bytes() };
        let all = [device.as_bytes(), at, fs].into_iter().chain(rest.iter().copied());
        out.extend(all.collect::<Vec<_>>().join(&b'\t'));
        out.push(b'\n');
    }
    if !is_there {
        if out.last().is_some_and(|b| *b != b'\n') {
            out.push(b'\n');
        }
        out.extend(format!("{device}\t{place}\t{kind}\t{options}\n").bytes());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(bytes: Vec<u8>) -> String {
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn lines_by_their_first_field() {
        let hosts = "127.0.0.1 localhost\n\t127.0.1.1\told\n127.0.1.1 twice\nend";
        let new = with_line(hosts.as_bytes(), b' ', b"127.0.1.1", b"127.0.1.1 lab-1");
        assert_eq!(text(new.clone()), "127.0.0.1 localhost\n127.0.1.1 lab-1\n127.0.1.1 twice\nend");
        assert_eq!(with_line(&new, b' ', b"127.0.1.1", b"127.0.1.1 lab-1"), new);
        assert_eq!(text(with_line(b"a=1\nab=2", b'=', b"b", b"b=3")), "a=1\nab=2\nb=3\n");
        assert_eq!(text(with_line(b"NTP = x\n", b'=', b"NTP", b"NTP=y")), "NTP=y\n");
        assert_eq!(text(with_line(b"", b':', b"x", b"x:1")), "x:1\n");
        assert_eq!(with_line(b"\xff\0\nx", b' ', b"x", b"x y"), b"\xff\0\nx y\n");
    }

    #[test]
    fn words_of_the_kernel() {
        for (before, key, word, after) in [
            (
                "console=tty1 root=/dev/x rootwait\n",
                "root",
                "root=PARTUUID=1-2",
                "console=tty1 root=PARTUUID=1-2 rootwait\n",
            ),
            ("a root=1 b root=2", "root", "root=3", "a root=3 b\n"),
            ("quiet  splash\nsecond\n", "quiet", "", "splash\nsecond\n"),
            ("rootfstype=ext4", "root", "root=1", "rootfstype=ext4 root=1\n"),
            ("", "quiet", "quiet", "quiet\n"),
            ("x=\"root=1 root=2\" y", "root", "", "x=\"root=1 root=2\" y\n"),
            ("x", "y", "", "x\n"),
        ] {
            let after_it = with_word(before.as_bytes(), key.as_bytes(), word.as_bytes());
            assert_eq!(text(after_it.clone()), after);
            assert_eq!(with_word(&after_it, key.as_bytes(), word.as_bytes()), after_it, "again");
        }
    }

    #[test]
    fn mounts_that_are_there_and_that_are_not() {
        let table = "# / is /\nproc /proc proc defaults 0 0\nLABEL=writable / ext4 noatime 0 1\n/dev/mmcblk0p1 /boot/firmware/ auto ro";
        let table = with_mount(table.as_bytes(), "PARTUUID=1-02", "/", ("ext4", "defaults 0 1"));
        let table = with_mount(&table, "PARTUUID=1-01", "/boot/firmware", ("vfat", "defaults 0 2"));
        let want = "# / is /\nproc /proc proc defaults 0 0\nPARTUUID=1-02\t/\text4\tnoatime\t0\t1\nPARTUUID=1-01\t/boot/firmware/\tauto\tro\n";
        assert_eq!(text(table), want);
        let table = with_mount(b"x", "PARTUUID=1-02", "/", ("ext4", "defaults\t0\t1"));
        assert_eq!(text(table), "x\nPARTUUID=1-02\t/\text4\tdefaults\t0\t1\n");
    }
}

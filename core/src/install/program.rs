//! Whether a program can become process 1 of a Pi, judged by its first bytes: an ELF program for a processor,
//! or a script with its interpreter. Total: the bytes may be anything.

use core::fmt;

/// As much of a program's beginning as is needed to judge it, in bytes.
pub const HEAD: usize = 4096;

/// Where an installed system keeps its process 1, in the order in which the places are tried.
pub const INIT_PATHS: [&str; 5] = ["/sbin/init", "/lib/systemd/systemd", "/etc/init", "/bin/init", "/bin/sh"];

/// A processor, by ELF's number for it (`e_machine`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Machine(pub u16);

impl Machine {
    /// 32-bit ARM: all Pis, the first ones with nothing else.
    pub const ARM: Self = Self(40);
    /// 64-bit ARM: Pis from the 3 on with a 64-bit kernel.
    pub const AARCH64: Self = Self(183);
    /// x86-64: no Pi.
    pub const X86_64: Self = Self(62);
    /// x86: no Pi.
    pub const X86: Self = Self(3);

    /// Whether some Pi runs programs for this processor.
    #[must_use]
    pub const fn is_a_pi(self) -> bool {
        matches!(self, Self::ARM | Self::AARCH64)
    }

    /// Whether a kernel for this processor runs programs for `other`, as kernels are usually configured.
    #[must_use]
    pub const fn runs(self, other: Self) -> bool {
        self.0 == other.0 || matches!((self, other), (Self::AARCH64, Self::ARM) | (Self::X86_64, Self::X86))
    }
}

/// The usual name, or ELF's number.
impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::ARM => f.write_str("32-bit ARM"),
            Self::AARCH64 => f.write_str("64-bit ARM"),
            Self::X86_64 => f.write_str("x86-64"),
            Self::X86 => f.write_str("x86"),
            Self(8) => f.write_str("MIPS"),
            Self(20 | 21) => f.write_str("PowerPC"),
            Self(243) => f.write_str("RISC-V"),
            Self(number) => write!(f, "ELF machine {number}"),
        }
    }
}

/// What a file's first bytes say it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Program<'a> {
    /// A program, and the loader that it needs (an absolute path); `None` for a static one.
    Elf {
        /// For which processor.
        machine: Machine,
        /// Its loader.
        loader: Option<&'a [u8]>,
    },
    /// A script, and the program that runs it.
    Script {
        /// An absolute path.
        interpreter: &'a [u8],
    },
}

/// Why something is no program that a Pi could run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum NotAProgram {
    /// Neither ELF nor `#!`.
    Unknown,
    /// An ELF header that is cut off or contradicts itself.
    Damaged,
    /// For a processor that keeps its numbers the other way round.
    BigEndian,
}

impl fmt::Display for NotAProgram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unknown => "is neither a program nor a script",
            Self::Damaged => "is a damaged program",
            Self::BigEndian => "is for another processor (big-endian)",
        })
    }
}

impl<'a> Program<'a> {
    /// Looks at the first bytes of a file, at most [`HEAD`] of them or all there are.
    ///
    /// # Errors
    /// [`NotAProgram`].
    pub fn parse(head: &'a [u8]) -> Result<Self, NotAProgram> {
        if let Some(line) = head.strip_prefix(b"#!") {
            let line = line.split(|b| *b == b'\n').next().unwrap_or_default();
            let mut words = line.split(u8::is_ascii_whitespace);
            let interpreter = words.find(|w| !w.is_empty()).ok_or(NotAProgram::Unknown)?;
            return Ok(Self::Script { interpreter });
        }
        elf(head)
    }
}

fn elf(head: &[u8]) -> Result<Program<'_>, NotAProgram> {
    if !head.starts_with(b"\x7fELF") {
        return Err(NotAProgram::Unknown);
    }
    if head.get(5) != Some(&1) {
        return Err(NotAProgram::BigEndian);
    }
    let number = |at: usize, bytes: usize| -> Option<usize> {
        let field = head.get(at..at.checked_add(bytes)?)?;
        Some(field.iter().rev().fold(0, |n, b| n << 8 | usize::from(*b)))
    };
    let machine = number(18, 2).and_then(|m| u16::try_from(m).ok()).ok_or(NotAProgram::Damaged)?;
    let machine = Machine(machine);
    let wide = head.get(4) == Some(&2);
    // Where the fields lie in the 64-bit and in the 32-bit form.
    let (table, size, count, offset, length, word) =
        if wide { (32, 54, 56, 8, 32, 8) } else { (28, 42, 44, 4, 16, 4) };
    let table = number(table, word).ok_or(NotAProgram::Damaged)?;
    let size = number(size, 2).ok_or(NotAProgram::Damaged)?;
    for index in 0..number(count, 2).ok_or(NotAProgram::Damaged)? {
        let at = index.checked_mul(size).and_then(|o| o.checked_add(table)).ok_or(NotAProgram::Damaged)?;
        // What lies behind the part that was read cannot be judged: the kernel will.
        let Some(3) = number(at, 4) else { continue };
        let field = |o: usize| number(at.saturating_add(o), word);
        let (Some(from), Some(bytes)) = (field(offset), field(length)) else { break };
        let name = from.checked_add(bytes).and_then(|to| head.get(from..to));
        return Ok(Program::Elf { machine, loader: name.map(|n| n.strip_suffix(b"\0").unwrap_or(n)) });
    }
    Ok(Program::Elf { machine, loader: None })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::{String, ToString};
    use std::vec::Vec;
    use std::{fs, vec};

    /// A static program, as far as the header says.
    fn program(machine: Machine) -> Vec<u8> {
        let mut elf = vec![0; 64];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        elf[18..20].copy_from_slice(&machine.0.to_le_bytes());
        elf
    }

    #[test]
    fn programs_and_scripts() {
        for machine in [Machine::AARCH64, Machine::X86_64, Machine(8)] {
            assert_eq!(Program::parse(&program(machine)), Ok(Program::Elf { machine, loader: None }));
        }
        let script = Ok(Program::Script { interpreter: b"/bin/sh" });
        assert_eq!(Program::parse(b"#! /bin/sh -e\nexit\n"), script);
        assert_eq!(Program::parse(b"#!/bin/sh"), script);
        for text in [&b""[..], b"text", b"#!", b"#! \n/bin/sh", b"\x7fEL"] {
            assert_eq!(Program::parse(text), Err(NotAProgram::Unknown), "{}", text.escape_ascii());
        }
        let mut big = program(Machine(8));
        big[5] = 2;
        assert_eq!(Program::parse(&big), Err(NotAProgram::BigEndian));
        assert_eq!(Program::parse(&program(Machine(8))[..30]), Err(NotAProgram::Damaged));
    }

    #[test]
    fn which_kernel_runs_what() {
        assert!(Machine::AARCH64.runs(Machine::ARM) && !Machine::ARM.runs(Machine::AARCH64));
        assert!(!Machine::AARCH64.runs(Machine::X86_64) && Machine(8).runs(Machine(8)));
        assert!(Machine::ARM.is_a_pi() && !Machine::X86_64.is_a_pi());
        assert_eq!((Machine(8).to_string(), Machine(1).to_string()), ("MIPS".into(), "ELF machine 1".into()));
    }

    #[test]
    fn the_loader_of_a_real_program() {
        let this = fs::read(std::env::current_exe().unwrap()).unwrap();
        let Ok(Program::Elf { loader, .. }) = Program::parse(&this[..HEAD]) else { panic!("no program") };
        if cfg!(target_env = "gnu") {
            let loader = String::from_utf8(loader.unwrap().to_vec()).unwrap();
            assert!(loader.starts_with("/lib") && loader.contains("ld-linux"), "{loader}");
        } else {
            assert_eq!(loader, None);
        }
    }

    #[test]
    fn damaged_programs_are_no_panic() {
        let this = fs::read(std::env::current_exe().unwrap()).unwrap();
        for length in 0..1024 {
            let _ = Program::parse(&this[..length]);
            let mut damaged = this[..1024].to_vec();
            damaged[length] = 0xff;
            let _ = Program::parse(&damaged);
        }
        let mut all = program(Machine::ARM);
        all[6..18].fill(0xff);
        all[20..].fill(0xff);
        let _ = Program::parse(&all);
    }
}

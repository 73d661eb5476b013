//! Functions by number: what is bound to which opcode, and the names that people use.

use core::fmt;

use heapless::Vec;

/// A function of ours: its opcode, its name, and what it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Function {
    /// Its number on the wire.
    pub opcode: u8,
    /// Its name for people.
    pub name: &'static str,
    /// What it takes and does, in a line.
    pub help: &'static str,
}

/// What every Pi of ours can be asked.
pub const FUNCTIONS: [Function; 8] = [
    Function { opcode: IDENTITY, name: "identity", help: "serial, MAC address, board and agent" },
    Function {
        opcode: STATUS,
        name: "status",
        help: "CPU, memory, disk, processes, temperature, uptime, image",
    },
    Function { opcode: LOG, name: "log", help: "[LINES]: the end of the system's log" },
    Function { opcode: REBOOT, name: "reboot", help: "starts the Pi again" },
    Function { opcode: REINSTALL, name: "reinstall", help: "installs the Pi again at its next start, now" },
    Function { opcode: IDENTIFY, name: "identify", help: "[SECONDS]: blinks the activity LED" },
    Function { opcode: RUN, name: "run", help: "NAME [ARGS...]: runs a hook of the hook folder" },
    Function { opcode: ID, name: "id", help: "the six characters that old peers ask for" },
];

/// Who the Pi is.
pub const IDENTITY: u8 = 1;
/// How it is.
pub const STATUS: u8 = 2;
/// The end of its log.
pub const LOG: u8 = 3;
/// Starts it again.
pub const REBOOT: u8 = 4;
/// Orders an installation and starts it again.
pub const REINSTALL: u8 = 5;
/// Shows which one it is.
pub const IDENTIFY: u8 = 6;
/// Runs a hook.
pub const RUN: u8 = 7;
/// A later dialect of the old peers: "what is your id", answered by six characters.
pub const ID: u8 = 0xBB;

impl Function {
    /// The function of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        FUNCTIONS.into_iter().find(|f| f.name == name)
    }
}

/// What is bound to which opcode, up to `N` functions.
#[derive(Debug)]
pub struct Bindings<F, const N: usize> {
    bound: Vec<(u8, F), N>,
}

/// Whatever the functions are.
#[cfg(feature = "defmt")]
impl<F, const N: usize> defmt::Format for Bindings<F, N> {
    fn format(&self, f: defmt::Formatter<'_>) {
        defmt::write!(f, "Bindings({} of {} functions)", self.bound.len(), N)
    }
}

/// Why a function is not bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum BindError {
    /// The opcode is bound already.
    Twice(u8),
    /// There is no room for another function.
    Full,
}

impl fmt::Display for BindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Twice(opcode) => write!(f, "a function is bound to opcode {opcode} already"),
            Self::Full => f.write_str("there is no room for another function"),
        }
    }
}

impl core::error::Error for BindError {}

impl<F, const N: usize> Default for Bindings<F, N> {
    fn default() -> Self {
        Self { bound: Vec::new() }
    }
}

impl<F, const N: usize> Bindings<F, N> {
    /// Binds a function to an opcode.
    ///
    /// # Errors
    /// [`BindError`]: a mistake of the program.
    pub fn bind(&mut self, opcode: u8, function: F) -> Result<(), BindError> {
        if self.bound.iter().any(|(o, _)| *o == opcode) {
            return Err(BindError::Twice(opcode));
        }
        self.bound.push((opcode, function)).map_err(|_| BindError::Full)
    }

    /// What is bound to this opcode, as a call has it.
    #[must_use]
    pub fn find(&self, opcode: i64) -> Option<&F> {
        self.bound.iter().find(|(o, _)| i64::from(*o) == opcode).map(|(_, f)| f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn binding_twice_is_an_error() {
        let mut bindings = Bindings::<&str, 2>::default();
        assert_eq!(bindings.bind(1, "one"), Ok(()));
        assert_eq!(bindings.bind(1, "again"), Err(BindError::Twice(1)));
        assert_eq!(bindings.bind(2, "two"), Ok(()));
        assert_eq!(bindings.bind(3, "three"), Err(BindError::Full));
        assert_eq!((bindings.find(1), bindings.find(257), bindings.find(-1)), (Some(&"one"), None, None));
    }

    #[test]
    fn numbers_and_names_are_unique() {
        for (i, a) in FUNCTIONS.iter().enumerate() {
            assert_eq!(Function::named(a.name), Some(*a));
            assert!(FUNCTIONS[..i].iter().all(|b| a.opcode != b.opcode));
        }
    }
}

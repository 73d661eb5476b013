//! What a Pi says: one report per line.

use super::ours::Notice;

/// A line from a Pi. Parsing is total: what is not a report is noise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum Report<'a> {
    /// There is no usable root filesystem on the card.
    Uninstalled,
    /// A root filesystem was found.
    Installed,
    /// Ends the control session. Proves nothing about the extraction of an old client.
    Formatted,
    /// Where an old or new Pi says it is.
    Milestone(Milestone),
    /// What our own agent adds.
    Ours(Notice<'a>),
    /// Console output, echoes, anything.
    Noise(&'a [u8]),
}

/// Progress that a Pi reports by a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[expect(missing_docs, reason = "the names are the words on the wire")]
pub enum Milestone {
    ReceivedDate,
    SetDate,
    Mounting,
    FinishedMounting,
    Unmounting,
    FinishedUnmounting,
    ReceivedBoot,
    ReceivedFormat,
    ReceivedReinstall,
}

impl Milestone {
    const ALL: [Self; 9] = [
        Self::ReceivedDate,
        Self::SetDate,
        Self::Mounting,
        Self::FinishedMounting,
        Self::Unmounting,
        Self::FinishedUnmounting,
        Self::ReceivedBoot,
        Self::ReceivedFormat,
        Self::ReceivedReinstall,
    ];

    /// The word on the wire.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::ReceivedDate => "RECEIVED_DATE",
            Self::SetDate => "SET_DATE",
            Self::Mounting => "MOUNTING",
            Self::FinishedMounting => "FINISHED_MOUNTING",
            Self::Unmounting => "UNMOUNTING",
            Self::FinishedUnmounting => "FINISHED_UNMOUNTING",
            Self::ReceivedBoot => "RECEIVED_BOOT",
            Self::ReceivedFormat => "RECEIVED_FORMAT",
            Self::ReceivedReinstall => "RECEIVED_REINSTALL",
        }
    }
}

impl<'a> Report<'a> {
    /// Reads one line, without its end. The whole line trimmed of ASCII white space must be
    /// the word: `+ send IS_INSTALLED` of a traced shell is noise.
    #[must_use]
    pub fn parse(line: &'a [u8]) -> Self {
        let word = line.trim_ascii();
        match word {
            b"IS_UNINSTALLED" => Self::Uninstalled,
            b"IS_INSTALLED" => Self::Installed,
            b"IS_FORMATTED" => Self::Formatted,
            _ => match Milestone::ALL.into_iter().find(|m| m.word().as_bytes() == word) {
                Some(milestone) => Self::Milestone(milestone),
                None => Notice::parse(word).map_or(Self::Noise(line), Self::Ours),
            },
        }
    }

    /// The word on the wire, for the reports that are one; `None` for [`Report::Ours`]
    /// (which is written by [`Notice`]'s `Display`) and for noise.
    #[must_use]
    pub const fn word(&self) -> Option<&'static str> {
        match self {
            Self::Uninstalled => Some("IS_UNINSTALLED"),
            Self::Installed => Some("IS_INSTALLED"),
            Self::Formatted => Some("IS_FORMATTED"),
            Self::Milestone(milestone) => Some(milestone.word()),
            Self::Ours(_) | Self::Noise(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_back() {
        let words = [Report::Uninstalled, Report::Installed, Report::Formatted];
        for report in words.into_iter().chain(Milestone::ALL.map(Report::Milestone)) {
            let word = report.word().unwrap();
            assert_eq!(Report::parse(word.as_bytes()), report);
            assert_eq!(Report::parse(std::format!(" \t{word}\r").as_bytes()), report);
            for noise in [std::format!("+ send {word}"), std::format!("{word}X"), word.to_lowercase()] {
                assert_eq!(Report::parse(noise.as_bytes()), Report::Noise(noise.as_bytes()));
            }
        }
    }

    #[test]
    fn noise_is_kept_as_it_came() {
        for noise in [&b""[..], b"  ", b"\xff\x00", b"/dev/mmcblk0p2 on /new_root type ext4 (rw)"] {
            assert_eq!(Report::parse(noise), Report::Noise(noise));
        }
    }
}

//! The server's, a group's and a Pi's profile as one.

use super::{File, Folder, Profile, Script, User};

impl Profile {
    /// This profile, and over it a more specific one: what that says wins, key by key; accounts go by name, files and
    /// folders by path, scripts by name.
    #[must_use]
    pub fn under(self, over: Self) -> Self {
        Self {
            hostname: over.hostname.or(self.hostname),
            locale: over.locale.or(self.locale),
            timezone: over.timezone.or(self.timezone),
            keyboard: over.keyboard.or(self.keyboard),
            ntp: over.ntp.or(self.ntp),
            ssh: over.ssh.or(self.ssh),
            service: over.service.or(self.service),
            identity: over.identity.or(self.identity),
            cloud_init: over.cloud_init.or(self.cloud_init),
            custom_toml: over.custom_toml.or(self.custom_toml),
            device: over.device.or(self.device),
            wifi: over.wifi.or(self.wifi),
            users: merged(self.users, over.users, |a: &User, b| a.name == b.name),
            files: merged(self.files, over.files, |a: &File, b| (a.at, &a.path) == (b.at, &b.path)),
            folders: merged(self.folders, over.folders, |a: &Folder, b| (a.at, &a.path) == (b.at, &b.path)),
            scripts: merged(self.scripts, over.scripts, |a: &Script, b| a.name == b.name),
        }
    }

    /// Whether it says nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Those of `over` in the place of the same ones, and what is new behind all.
fn merged<T>(mut all: Vec<T>, over: Vec<T>, is_same: impl Fn(&T, &T) -> bool) -> Vec<T> {
    for new in over {
        match all.iter_mut().find(|old| is_same(old, &new)) {
            Some(old) => *old = new,
            None => all.push(new),
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_more_specific_one_wins_by_key_name_and_path() {
        let profile = |text: &str| Profile::parse(text).unwrap();
        let server = profile(
            "hostname = 'a'\nlocale = 'C'\nntp = ['x', 'y']\n[wifi]\nssid = 'a'\npsk = '12345678'\n
             [[users]]\nname = 'pi'\nlocked = true\n[[users]]\nname = 'op'\n
             [[files]]\npath = '/a'\ncontent = '1'\n[[files]]\npath = '/b'\ncontent = '1'\n
             [[scripts]]\nname = 's'\ncontent = '#!1'",
        );
        let group = profile("hostname = 'b'\nntp = ['z']\n[[users]]\nname = 'pi'\n[[users]]\nname = 'new'");
        let device = profile(
            "[device]\nordinal = 3\n[wifi]\nssid = 'b'\n[[files]]\npath = '/b'\ncontent = '2'\n
             [[files]]\npath = '/b'\nat = 'boot'\ncontent = '3'\n[[scripts]]\nname = 's'\ncontent = '#!2'",
        );
        let all = server.under(group).under(device);
        assert_eq!((all.hostname.as_deref(), all.locale.as_deref()), (Some("b"), Some("C")));
        assert_eq!(all.ntp.unwrap().len(), 1);
        let wifi = all.wifi.unwrap();
        assert!(&*wifi.ssid == "b" && wifi.psk.is_none(), "another network has another password");
        let users: Vec<_> = all.users.iter().map(|u| (&*u.name, u.locked)).collect();
        assert_eq!(users, [("pi", false), ("op", false), ("new", false)]);
        let files: Vec<_> = all.files.iter().map(|f| f.content.as_ref().unwrap().bytes()).collect();
        assert_eq!(files, [b"1", b"2", b"3"]);
        assert_eq!(all.scripts[0].content.as_ref().unwrap().bytes(), b"#!2");
        assert_eq!(all.device.unwrap().ordinal, Some(3));
        assert!(Profile::default().under(Profile::default()).is_empty());
    }
}

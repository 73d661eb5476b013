//! A profile without its secrets: to be shown, and to be rendered for being shown.

use std::collections::BTreeMap;

use toml::{Table, Value};

use super::{Blob, HIDDEN, Profile, ProfileError, Secret, Verbatim};

impl Profile {
    /// The same with something else in the place of each secret. What is rendered of it has none.
    #[must_use]
    pub fn hidden(mut self) -> Self {
        if let Some(psk) = self.wifi.as_mut().and_then(|wifi| wifi.psk.as_mut()) {
            *psk = Secret::hidden();
        }
        for user in &mut self.users {
            if user.password_hash.is_some() {
                user.password_hash = Some(Secret::hidden());
            }
        }
        for file in self.files.iter_mut().filter(|file| file.secret) {
            file.content = Some(Blob::hidden());
        }
        // Nobody knows what is in them.
        for verbatim in [&mut self.cloud_init, &mut self.custom_toml].into_iter().flatten() {
            let names = verbatim.files().map(|(name, _)| (name.to_owned(), Blob::hidden()));
            let files: BTreeMap<_, _> = names.collect();
            *verbatim = Verbatim::Files(files);
        }
        self
    }
}

/// The TOML of a profile without its secrets, and without comments, which may have some.
///
/// # Errors
/// If it is no profile.
pub fn without_secrets(text: &str) -> Result<String, ProfileError> {
    Profile::parse(text)?;
    let damaged = |_| ProfileError::from("it cannot be read any more".to_owned());
    let mut table: Table = toml::from_str(text).map_err(damaged)?;
    let hide = |value: Option<&mut Value>| {
        if let Some(value) = value {
            *value = Value::String(HIDDEN.into());
        }
    };
    hide(table.get_mut("wifi").and_then(|wifi| wifi.get_mut("psk")));
    for verbatim in ["cloud-init", "custom-toml"] {
        // Where it is the name of a file or folder, that is no secret.
        for (_, content) in table.get_mut(verbatim).and_then(Value::as_table_mut).into_iter().flatten() {
            *content = Value::String(HIDDEN.into());
        }
    }
    let mut each = |key: &str, what: &str, only_secret: bool| {
        let Some(all) = table.get_mut(key).and_then(Value::as_array_mut) else { return };
        for one in all {
            if !only_secret || one.get("secret").and_then(Value::as_bool) == Some(true) {
                hide(one.get_mut(what));
            }
        }
    };
    each("users", "password-hash", false);
    each("files", "content", true);
    toml::to_string_pretty(&table).map_err(|e| ProfileError::from(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_is_shown_without_secrets() {
        let text = "# hunter2\n[wifi]\nssid = 'x'\npsk = 'hunter2-wifi' # hunter2\n
            [[users]]\nname = 'pi'\npassword-hash = '$6$hunter2$0123456789012345678901'\n
            [cloud-init]\nuser-data = 'hunter2'\n
            [[files]]\npath = '/a'\ncontent = 'hunter2'\nsecret = true\n[[files]]\npath = '/b'\ncontent = 'open'";
        let shown = without_secrets(text).unwrap();
        assert!(
            !shown.contains("hunter2") && shown.contains("open") && shown.contains("(secret)"),
            "{shown}"
        );
        let hidden = serde_json::to_string(&Profile::parse(text).unwrap().hidden()).unwrap();
        assert!(!hidden.contains("hunter2") && hidden.contains("open"), "{hidden}");
    }
}

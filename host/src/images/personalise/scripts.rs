//! Scripts that run once, when the system has started for the first time, in the order in which the profile has them.
//! Each is known by its name and its content: applied again, one that ran does not run again, and a changed one does.

use piman_core::install::personal::Place;

use super::draft::{Done, Work, filled};
use super::profile::{Blob, Locale, Name, Script};
use super::template::Facts;
use crate::images::fitness::Has;

const FOLDER: &str = "/usr/local/lib/piman/first-boot";
const RUNNER: &str = "/usr/local/sbin/piman-first-boot";
const UNIT: &str = "piman-first-boot.service";

const RUN: &str = r#"#!/bin/sh
# Runs the scripts of the Pi's profile, each once, in their order.
umask 022
marks=/var/lib/piman/first-boot
mkdir -p "$marks"
for script in /usr/local/lib/piman/first-boot/*; do
    [ -x "$script" ] || continue
    name=${script##*/}
    mark=$marks/${name#*-}
    [ -e "$mark" ] && continue
    echo "$(date -u +%Y-%m-%dT%H:%M:%SZ) $name begins"
    "$script" </dev/null 2>&1
    status=$?
    echo "$(date -u +%Y-%m-%dT%H:%M:%SZ) $name ended with status $status"
    echo "$status" >"$mark"
done
"#;

const SERVICE: &str = "[Unit]
Description=piman: scripts of the first boot
Wants=network-online.target
After=network-online.target

[Service]
Type=oneshot
RemainAfterExit=yes
TimeoutStartSec=infinity
ExecStart=/bin/sh -c 'umask 077; /usr/local/sbin/piman-first-boot 2>&1 | tee -a /var/log/piman-first-boot.log'

[Install]
WantedBy=multi-user.target
";

pub(super) fn write(work: &mut Work<'_>, facts: &Facts) -> Done {
    let scripts = std::mem::take(&mut work.rest.scripts);
    if scripts.is_empty() {
        return Ok(());
    }
    if !work.subject.system.has(Has::Systemd) {
        let names: Vec<&str> = scripts.iter().map(|script| &*script.name).collect();
        return Err(work.lacks("scripts", &format!("no systemd, which runs them: {}", names.join(", "))));
    }
    // Those of a profile before this one.
    work.remove(FOLDER)?;
    for (index, script) in scripts.iter().enumerate() {
        let what = format!("script {}", script.name);
        let content = filled(&what, script.content.as_ref(), script.template, facts)?;
        let hash = blake3::hash(&content).to_hex();
        let path = format!("{FOLDER}/{index:03}-{}-{hash:.8}", script.name);
        work.file(Place::Root, &path, 0o700, &content)?;
    }
    work.file(Place::Root, RUNNER, 0o755, RUN.as_bytes())?;
    let unit = format!("/etc/systemd/system/{UNIT}");
    work.root_file(&unit, SERVICE)?;
    work.enable(UNIT, &unit)
}

/// Adds one of our own, before those of the profile.
pub(super) fn add_first(work: &mut Work<'_>, name: &str, content: String) {
    // What is no name would be a mistake here: then there is no such script.
    if let Ok(name) = Name::try_from(name.to_owned()) {
        let content = Some(Blob::Text(content));
        work.rest.scripts.insert(0, Script { name, content, from: None, template: false });
    }
}

/// Debian and its like make a locale out of its sources before it can be used. Where there is no systemd it has to be
/// there.
pub(super) fn generate_locale(work: &mut Work<'_>, locale: &Locale) {
    let is_built_in = locale.starts_with("C.") || matches!(&**locale, "C" | "POSIX");
    if is_built_in || !work.subject.system.has(Has::Systemd) {
        return;
    }
    let charset = locale.split_once('.').map_or("ISO-8859-1", |(_, charset)| charset);
    let text = format!(
        "#!/bin/sh\n\
         # Makes the locale of the Pi's profile.\n\
         command -v locale-gen >/dev/null || exit 0\n\
         grep -qx '{locale} {charset}' /etc/locale.gen || echo '{locale} {charset}' >>/etc/locale.gen\n\
         locale-gen\n"
    );
    add_first(work, "piman-locale", text);
}

//! What is written into a system directly.

use piman_core::install::personal::{Item, Place};

use super::draft::{Done, Work, filled, owner};
use super::profile::{File, Folder, Mode};
use super::template::Facts;
use super::{accounts, scripts, wifi};
use crate::images::fitness::Has;

/// Writes all that is left of the profile.
pub(super) fn write(work: &mut Work<'_>) -> Done {
    let facts = work.subject.facts.clone();
    host_name(work, &facts)?;
    locale(work)?;
    time(work)?;
    wifi::write(work)?;
    ssh(work)?;
    accounts::write(work)?;
    service(work)?;
    for folder in std::mem::take(&mut work.rest.folders) {
        let Folder { path, at, mode, .. } = &folder;
        let mode = mode.map_or(0o755, |mode| mode.0);
        let owner = owner(folder.owner.as_ref());
        work.add(&Item::Folder { place: (*at).into(), mode, owner: &owner, path })?;
    }
    files(work, &facts)?;
    scripts::write(work, &facts)
}

/// The files that a profile has.
pub(super) fn files(work: &mut Work<'_>, facts: &Facts) -> Done {
    for file in std::mem::take(&mut work.rest.files) {
        let content = filled(&format!("file {}", file.path), file.content.as_ref(), file.template, facts)?;
        let File { path, mode, secret, .. } = &file;
        let mode = mode.unwrap_or(Mode(if *secret { 0o600 } else { 0o644 })).0;
        let owner = owner(file.owner.as_ref());
        work.add(&Item::File { place: file.place(), mode, owner: &owner, path, content: &content })?;
    }
    Ok(())
}

fn host_name(work: &mut Work<'_>, facts: &Facts) -> Done {
    let Some(name) = work.rest.hostname.take().and(facts.hostname.as_ref()) else { return Ok(()) };
    work.root_file("/etc/hostname", &format!("{name}\n"))?;
    let text = format!("127.0.1.1\t{name}");
    work.add(&Item::Line {
        place: Place::Root,
        separator: b' ',
        path: "/etc/hosts",
        key: "127.0.1.1",
        text: &text,
    })
}

fn locale(work: &mut Work<'_>) -> Done {
    if let Some(locale) = work.rest.locale.take() {
        // Where the one is a link to the other it is the same line.
        for path in ["/etc/locale.conf", "/etc/default/locale"] {
            work.setting(Place::Root, path, "LANG", &locale)?;
        }
        scripts::generate_locale(work, &locale);
    }
    if let Some(layout) = work.rest.keyboard.take() {
        work.setting(Place::Root, "/etc/default/keyboard", "XKBLAYOUT", &format!("\"{layout}\""))?;
        // The console's own maps have another name for this one.
        let keymap = if &*layout == "gb" { "uk" } else { &*layout };
        work.setting(Place::Root, "/etc/vconsole.conf", "KEYMAP", keymap)?;
    }
    if let Some(zone) = work.rest.timezone.take() {
        let target = format!("/usr/share/zoneinfo/{zone}");
        work.add(&Item::Link { path: "/etc/localtime", target: &target })?;
        work.root_file("/etc/timezone", &format!("{zone}\n"))?;
    }
    Ok(())
}

fn time(work: &mut Work<'_>) -> Done {
    let Some(servers) = work.rest.ntp.take() else { return Ok(()) };
    let system = work.subject.system;
    if system.has(Has::Timesyncd) {
        let text = format!("[Time]\nNTP={}\n", servers.iter().map(|s| &**s).collect::<Vec<_>>().join(" "));
        work.root_file("/etc/systemd/timesyncd.conf.d/piman.conf", &text)
    } else if system.has(Has::Chrony) {
        let lines: String = servers.iter().map(|server| format!("server {server} iburst\n")).collect();
        work.root_file("/etc/chrony/sources.d/piman.sources", &lines)
    } else {
        Err(work.lacks("ntp", "neither systemd-timesyncd nor chrony"))
    }
}

fn ssh(work: &mut Work<'_>) -> Done {
    let Some(is_on) = work.rest.ssh.take() else { return Ok(()) };
    let system = work.subject.system;
    if !is_on {
        for link in [
            "multi-user.target.wants/ssh.service",
            "multi-user.target.wants/sshd.service",
            "sockets.target.wants/ssh.socket",
        ] {
            work.remove(&format!("/etc/systemd/system/{link}"))?;
        }
        return Ok(());
    }
    let unit = match (system.has(Has::Ssh), system.has(Has::Sshd)) {
        (true, _) => "ssh.service",
        (false, true) => "sshd.service",
        (false, false) => return Err(work.lacks("ssh", "no SSH server that systemd starts")),
    };
    work.remove("/etc/ssh/sshd_not_to_be_run")?;
    work.enable(unit, &format!("/lib/systemd/system/{unit}"))
}

/// The agent's service, which the agent itself may put there at each boot.
fn service(work: &mut Work<'_>) -> Done {
    const UNIT: &str = "piman-agent.service";
    let drop_in = format!("/etc/systemd/system/{UNIT}.d/profile.conf");
    match work.rest.service.take() {
        None => Ok(()),
        Some(true) => {
            work.remove(&drop_in)?;
            work.enable(UNIT, &format!("/etc/systemd/system/{UNIT}"))
        }
        // Whoever enables it again does not start it.
        Some(false) => work.root_file(&drop_in, "[Unit]\nConditionPathExists=/run/piman/service-is-wanted\n"),
    }
}

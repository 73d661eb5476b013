//! What Pis and servers say: every line means something, and what is understood can be
//! written and means the same then (but for white space and length of texts for people).
#![no_main]

use libfuzzer_sys::fuzz_target;
use piman_core::install::{Agent, Command, Date, Report, fetch};

fuzz_target!(|data: &[u8]| {
    let mut agent = Agent::new();
    for line in data.split(|b| *b == b'\n') {
        match Report::parse(line) {
            Report::Ours(notice) => {
                let text = notice.to_string();
                assert!(!text.contains('\n') && text.len() < 1024, "{text}");
                let Report::Ours(again) = Report::parse(text.as_bytes()) else { panic!("{text}") };
                assert_eq!(again.to_string(), text);
            }
            Report::Noise(noise) => assert_eq!(noise, line),
            report => assert_eq!(report.word().map(str::as_bytes), Some(line.trim_ascii())),
        }
        if let Some(date) = Date::parse(line) {
            let text = Command::Date(date).to_string();
            let first = text.lines().next().unwrap_or_default();
            assert_eq!(Date::parse(first.as_bytes()), Some(date));
            assert!(text.ends_with("\nEOM\n"));
        }
        if let Some(request) = fetch::Request::parse(line) {
            let text = request.to_string();
            assert_eq!(fetch::Request::parse(text.trim_end().as_bytes()), Some(request));
        }
        if let Some(answer) = fetch::Answer::parse(line) {
            let text = answer.to_string();
            let again = fetch::Answer::parse(text.trim_end_matches('\n').as_bytes());
            assert_eq!(again.map(|a| a.to_string()), Some(text));
        }
        let _ = agent.handle(line);
    }
});

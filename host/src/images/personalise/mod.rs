//! What makes a card one Pi's own: profiles.

pub mod profile;
pub mod template;

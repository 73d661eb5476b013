//! What makes a card one Pi's own: profiles, and the bundles of items that are rendered of them.
//!
//! | file | what lives there |
//! |---|---|
//! | [`profile`] | what an operator wants |
//! | [`template`] | names in texts that stand for facts of a Pi |
//! | [`render`](mod@render) | a profile and a Pi's facts to a bundle |
//! | [`subject`] | for which Pi, image and occasion |
//! | `draft` | writing items |
//! | `cloud_init`, `custom_toml`, `user_conf`, `dietpi`, `home_assistant` | what a kind of system does by itself at its first boot |
//! | `plain`, `accounts`, `wifi`, `scripts` | the rest, written into the system directly |
//! | `reach` | whether agents can write where the items are to go |
//! | `shown` | items for people |

mod accounts;
mod cloud_init;
mod custom_toml;
mod dietpi;
mod draft;
mod home_assistant;
mod plain;
pub mod profile;
mod reach;
pub mod render;
mod scripts;
mod shown;
pub mod subject;
pub mod template;
mod user_conf;
mod wifi;

pub use render::{Rendered, render};
pub use shown::items;
pub use subject::{Occasion, Subject};

//! What is installed: archives, their images, and which Pi gets which.
//!
//! | module | what lives there |
//! |---|---|
//! | [`import`] | archives of other forms, made into such as Pis read |
//! | [`source`] | an archive on disk, its versions, and what is known of them |
//! | [`catalog`] | which archive a Pi gets |
//! | [`boot_from`] | from what a card boots, and how much of it that takes |
//! | [`build_queue`] | images that are being built |
//! | [`disk_image`] | raw disk images: what is on them, what of them is used |
//! | [`ext4`] | an ext4 image out of an archive |
//! | [`extract`] | single files of an image |
//! | [`fitness`] | whether what an archive holds can run on a Pi |
//! | `output` | the folder that single files are written into |
//! | [`sign`] | signed manifests |

pub mod boot_from;
pub mod build_queue;
pub mod catalog;
pub mod disk_image;
pub mod ext4;
pub mod extract;
pub mod fitness;
pub mod import;
mod output;
pub mod personalise;
pub mod sign;
pub mod source;

//! `piman netboot`: the folder that Pis fetch, also out of an image.

use std::path::PathBuf;

use anyhow::{Context, bail};

use crate::cli::state_arg::StateFolder;
use crate::images::extract::extract;
use crate::netboot::build::{Ingredients, build, from_image};
use crate::state::{FILE, Sqlite, State};

/// What can be done about booting from the network.
#[derive(Debug, clap::Subcommand)]
pub enum NetbootCommand {
    /// Make the folder for `piman serve --netboot`: agent, kernel, firmware and their configuration
    #[command(
        after_help = "The same input gives the same bytes. A Pi with the serial number ...abcdef01 looks \
        for abcdef01/NAME first, so files in such a folder are for it alone. A Pi that gets the image NAME \
        gets all files from images/NAME/, if there is such a folder: make it with --from-image NAME \
        --out FOLDER/images/NAME."
    )]
    Build(BuildArgs),
}

/// What a folder is made from.
#[derive(Debug, clap::Args)]
pub struct BuildArgs {
    #[command(flatten)]
    ingredients: Ingredients,
    /// Image of `piman image add`, whose kernel, device trees, firmware and modules are taken; what it lacks
    /// comes from --firmware
    #[arg(long, value_name = "NAME", conflicts_with = "modules")]
    from_image: Option<String>,
    #[command(flatten)]
    state: StateFolder,
}

/// Runs `piman netboot`; returns what is printed.
///
/// # Errors
/// What went wrong, with what was being done.
pub fn run(command: NetbootCommand) -> anyhow::Result<String> {
    let NetbootCommand::Build(BuildArgs { ingredients, from_image, state }) = command;
    let Some(name) = from_image else { return Ok(build(&ingredients)?.describe()) };
    let path = image(&state, &name)?;
    let folder = tempfile::tempdir().context("making a folder for the image's files")?;
    let mut take = |wanted: &dyn Fn(&str) -> Option<String>| extract(&path, wanted, folder.path());
    let ingredients = from_image::complete(ingredients, folder.path(), &mut take)
        .with_context(|| format!("taking what boots Pis from the image {name}"))?;
    Ok(build(&ingredients)?.describe())
}

/// Where the image of this name is.
fn image(state: &StateFolder, name: &str) -> anyhow::Result<PathBuf> {
    let folder = state.path()?;
    let images = match folder.join(FILE).exists() {
        true => Sqlite::command(&folder)?.catalogue()?.images,
        false => Vec::new(),
    };
    if let Some(image) = images.iter().find(|image| image.name == name) {
        return Ok(image.path.clone());
    }
    let names: Vec<&str> = images.iter().map(|image| image.name.as_str()).collect();
    match names.is_empty() {
        true => bail!("there are no images in {}: add one with `piman image add FILE`", folder.display()),
        false => bail!("there is no image {name} in {}; there are {}", folder.display(), names.join(", ")),
    }
}

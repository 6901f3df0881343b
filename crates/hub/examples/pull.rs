//! Pulls one model by name and prints where it is: `cargo run --release -p hub --example pull -- NAME`.
#![allow(clippy::print_stdout)]

use std::{env, error::Error};

fn main() -> Result<(), Box<dyn Error>> {
    let name = env::args().nth(1).ok_or("give the name of a model")?;
    let pulled = hub::Hub::from_env().pull(&name, &mut ())?;
    println!("{}", pulled.path.display());
    Ok(())
}

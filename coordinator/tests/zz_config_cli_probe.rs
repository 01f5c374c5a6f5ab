//! probe
#[path = "../src/config_cli.rs"]
mod config_cli;
use clap::Parser;
#[derive(Parser)]
struct Cli { #[command(subcommand)] c: config_cli::ConfigCommand }
#[test]
fn probe() {
    std::env::set_current_dir("..").unwrap();
    for a in ["show experiments/quickstart.toml","plan experiments/quickstart.toml","plan experiments/progan-faces.toml --workers 8","plan experiments/progan-faces.toml --workers 12","check experiments/quickstart.toml --set train.total_kims=3 --set checkpoint.url=s4://x", "schema"] {
        println!("$ {a}");
        match config_cli::run(&Cli::try_parse_from(std::iter::once("config").chain(a.split(' '))).unwrap().c, &mut std::io::stdout()) { Ok(())=>{}, Err(e)=>println!("{e}") }
    }
}

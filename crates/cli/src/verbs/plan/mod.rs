//! `frontdesk plan`: what training and the alternatives will take, before anything is spent.

mod render;

use std::path::PathBuf;

use fewshot::{BreakEven, Endpoint, Prices, PromptOptions, Prompts, Structure, TokenCounter};
use formats::{BaseModel, Tokenizer};
use kernels::{Backend, Encoding};
use router::{Method, Recipe, TrainData, VALIDATIONS, peak_memory};
use routing::Example;
use serde::Serialize;

use crate::Done;
use crate::device::{DeviceArgs, on_devices};
use crate::recipe::RecipeArgs;
use crate::terminal::Output;
use crate::values;
use crate::verbs::against::{PriceArgs, ShotArgs};
use crate::verbs::bench;
use crate::verbs::train::MethodArg;
use crate::verbs::{FieldArgs, base_path};

/// Flags of `plan`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// Labelled queries to train on.
    #[arg(long, value_name = "FILE", required_unless_present = "show_prices")]
    data: Option<PathBuf>,
    /// Labelled queries to validate on; without it some of the data is held out.
    #[arg(long, value_name = "FILE")]
    valid: Option<PathBuf>,
    /// Queries that a large model would be asked.
    #[arg(long, value_name = "FILE")]
    test: Option<PathBuf>,
    #[command(flatten)]
    fields: FieldArgs,
    /// Base model.
    #[arg(long, value_name = "MODEL", default_value = "smollm2-135m")]
    base: String,
    /// What trains; by default lora in a decoder, a head on an encoder.
    #[arg(long, value_enum)]
    method: Option<MethodArg>,
    #[command(flatten)]
    recipe: RecipeArgs,
    /// Training examples a second, as `bench train` prints them; measured in a few steps when not given.
    #[arg(long, value_name = "X", value_parser = values::above_zero::<f64>)]
    examples_per_s: Option<f64>,
    /// Queries a second, as `bench route` prints them; estimated from the training speed when not given.
    #[arg(long, value_name = "X", value_parser = values::above_zero::<f64>)]
    queries_per_s: Option<f64>,
    /// Large models to price.
    #[arg(long, value_name = "MODEL", value_delimiter = ',', default_values = ["gpt-4o", "gpt-4o-mini"])]
    against: Vec<String>,
    #[command(flatten)]
    shots: ShotArgs,
    #[command(flatten)]
    prices: PriceArgs,
    /// Print the built-in price file and do nothing else.
    #[arg(long)]
    show_prices: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    device: DeviceArgs,
}

/// Steps that are timed.
const TIMED_STEPS: u64 = 3;
/// As `--precision` spells it.
const INT8: &str = "int8";
/// Queries whose prompts are counted at most.
const COUNTED: usize = 100;
/// A validation row costs as much as this many training examples (BANKING77 on two cores: 77 ms against 41).
const EXAMPLES_A_VALIDATION_ROW: f64 = 2.0;
/// Queries routed in the time of one training example. On BANKING77 and two cores 67 a second against 25 in bf16, and
/// in integers 108 against 25 or, on an older processor, 30 against 11.5. A few steps teach too little to measure it:
/// an untrained router searches longer.
const QUERIES_AN_EXAMPLE: f64 = 2.0;
const QUERIES_AN_EXAMPLE_INT8: f64 = 3.0;

/// What is to be expected.
#[derive(Debug, Serialize)]
struct Forecast {
    training_rows: usize,
    validation_rows: usize,
    labels: usize,
    method: &'static str,
    epochs: f32,
    /// Tokens of the training conversations, each counted once.
    training_tokens: u64,
    examples_per_s: f64,
    /// Whether the speed was measured just now.
    measured: bool,
    /// Where and in which arithmetic.
    trains_on: String,
    minutes: f64,
    /// Of the measured steps; training stays about there, since the rows of a pass are bounded.
    peak_memory_bytes: Option<u64>,
    training_cost: f64,
    queries_per_s: f64,
    /// The arithmetic of that.
    routes_in: String,
    /// USD for 1,000 queries on a machine that is never idle.
    own_cost_per_1000: f64,
    hardware_per_hour: f64,
    prices_as_of: String,
    models: Vec<Remote>,
}

/// One large model with one prompt.
#[derive(Debug, Serialize)]
struct Remote {
    name: String,
    shots: String,
    /// Tokens of a prompt and of an answer, counted with the base model's tokenizer.
    prompt_tokens: f64,
    answer_tokens: f64,
    /// `None` where the price is not known.
    cost_per_1000: Option<f64>,
    /// As a batch job that may take a day.
    batch_cost_per_1000: Option<f64>,
    /// USD for all rows of the test file.
    test_rows_cost: Option<f64>,
    /// USD for fine-tuning it on the same data for as many epochs.
    fine_tuning_cost: Option<f64>,
    break_even: Option<BreakEven>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<Done> {
    if args.show_prices {
        write!(Output, "{}", Prices::built_in_text())?;
        return Ok(Done::Fully);
    }
    let forecast = on_devices!(args.device.open(), forecast, args)?;
    if args.json {
        writeln!(Output, "{}", serde_json::to_string_pretty(&forecast)?)?;
    } else {
        write!(Output, "{}", forecast.render())?;
    }
    Ok(Done::Fully)
}

fn forecast<B: Backend>(backends: Vec<B>, args: &Args) -> anyhow::Result<Forecast> {
    let path = args.data.as_ref().ok_or_else(|| anyhow::anyhow!("--data FILE is missing"))?;
    let (fields, prices) = (args.fields.options(), args.prices.read()?);
    let recipe = Recipe { method: args.method.map(Method::from), ..args.recipe.recipe()? };
    let file = routing::read(path, &fields)?;
    let (labels, all) = (file.labels(), file.examples.len());
    let valid = args.valid.as_ref().map(|valid| routing::read(valid, &fields)).transpose()?;
    let given = valid.as_ref().map(|valid| valid.examples.len());
    let data = TrainData::new(file, valid, &fields, &recipe)?;
    let validation_rows = given.unwrap_or(all - data.train().len());
    let base_path = base_path(&args.base)?;
    let base = BaseModel::open(&base_path)?;
    let (tokenizer, method) = (base.tokenizer()?, recipe.method_for(&base));
    anyhow::ensure!(
        method != Method::Linear,
        "a model of n-grams is fitted in seconds; there is nothing to plan"
    );
    let test =
        args.test.as_ref().map(|test| routing::read(test, &fields)).transpose()?.map(|test| test.examples);

    let measured = args.examples_per_s.is_none();
    let trains_on = router::device_name(&backends);
    let routes_in = routes_in(&backends[0], &base, method, args.device.encoding());
    let rows = data.train().len();
    let whole_encoder = method == Method::Full && base.config.is_encoder();
    let (examples_per_s, seconds) = match (args.examples_per_s, method) {
        (Some(given), Method::Head) => (given, (rows + validation_rows) as f64 / given),
        (Some(given), _) => (given, work(&recipe, rows, validation_rows, whole_encoder) / given),
        (None, Method::Head) => {
            let speed =
                bench::head_speed(backends, &base_path, path, (&args.fields, &args.device), recipe.clone())?;
            let texts = (rows + validation_rows) as f64;
            (speed.texts_per_s, texts / speed.texts_per_s + texts * speed.fit_per_text)
        }
        (None, _) => {
            let timed = Recipe { method: Some(method), ..recipe.clone() };
            let speed = bench::examples_per_s(backends, path, &args.fields, &base_path, timed, TIMED_STEPS)?;
            (speed, work(&recipe, rows, validation_rows, whole_encoder) / speed)
        }
    };
    // To route a query, a head needs the model to read it once, as its training did.
    let an_example = match &routes_in[..] {
        _ if method == Method::Head => 1.0,
        INT8 => QUERIES_AN_EXAMPLE_INT8,
        _ => QUERIES_AN_EXAMPLE,
    };
    let queries_per_s = args.queries_per_s.unwrap_or(an_example * examples_per_s);
    let epochs = if method.reads_once() { 1.0 } else { recipe.sized_for(rows, whole_encoder).1 };
    let mut forecast = Forecast {
        training_rows: rows,
        validation_rows,
        labels: labels.len(),
        method: method.name(),
        epochs,
        training_tokens: training_tokens(data.train(), &recipe.system, &|text| count(&tokenizer, text)),
        examples_per_s,
        measured,
        trains_on,
        minutes: seconds / 60.0,
        peak_memory_bytes: peak_memory().filter(|_| measured),
        training_cost: prices.hardware.cost(seconds),
        queries_per_s,
        routes_in,
        own_cost_per_1000: prices.hardware.cost(1e3 / queries_per_s),
        hardware_per_hour: prices.hardware.per_hour,
        prices_as_of: prices.as_of.clone(),
        models: Vec::new(),
    };
    let queries = test.as_deref().unwrap_or(data.train());
    for (shots, options) in args.shots.prompts()? {
        let (prompt_tokens, answer_tokens) =
            prompt_tokens(data.train(), queries, &labels, &options, &tokenizer)?;
        for model in &args.against {
            let model = Endpoint::from_env(model)?.model;
            forecast.add(model, &shots, prompt_tokens, answer_tokens, test.as_ref().map(Vec::len), &prices);
        }
    }
    Ok(forecast)
}

/// What a router computes in: in integers on a processor, unless the weights stay in their 4 bits or a head reads what
/// a decoder computes; else as in training.
fn routes_in<B: Backend>(backend: &B, base: &BaseModel, method: Method, encoding: Encoding) -> String {
    let stays = method == Method::Qlora || (method == Method::Head && !base.config.is_encoder());
    let integers = encoding == Encoding::Int8 && !stays && backend.peak_bytes().is_none();
    let name = if integers { INT8.to_owned() } else { backend.name() };
    name.split(' ').next_back().unwrap_or_default().to_owned()
}

/// The work of a run, in training examples.
fn work(recipe: &Recipe, train: usize, valid: usize, whole_encoder: bool) -> f64 {
    let (batch, epochs) = recipe.sized_for(train, whole_encoder);
    let planned = f64::from(epochs) * train as f64;
    let examples = recipe.max_steps.map_or(planned, |steps| planned.min(steps as f64 * batch as f64));
    let validations = recipe
        .validate_every
        .map_or(VALIDATIONS as f64, |every| examples / batch as f64 / every.max(1) as f64);
    let scored = validations * valid.min(recipe.max_validation) as f64 + valid as f64;
    examples + EXAMPLES_A_VALIDATION_ROW * scored
}

/// Tokens of the training rows as conversations of system message, query and label.
pub(crate) fn training_tokens(train: &[Example], system: &str, count: &dyn Fn(&str) -> usize) -> u64 {
    // What a chat format puts around three messages.
    const AROUND: usize = 12;
    let system = count(system);
    let tokens = |example: &Example| {
        let own = example.system.as_deref().map_or(system, count);
        let history: usize = example.history.iter().map(|turn| count(&turn.text)).sum();
        (AROUND + own + history + count(&example.text) + count(&example.label)) as u64
    };
    train.iter().map(tokens).sum()
}

fn count(tokenizer: &Tokenizer, text: &str) -> usize {
    tokenizer.encode_plain(text).map_or(text.len(), |ids| ids.len())
}

/// Mean tokens of a prompt and of an answer, over rows spread evenly.
fn prompt_tokens(
    train: &[Example],
    queries: &[Example],
    labels: &[String],
    options: &PromptOptions,
    tokenizer: &Tokenizer,
) -> anyhow::Result<(f64, f64)> {
    let sample: Vec<Example> =
        queries.iter().step_by(queries.len().div_ceil(COUNTED).max(1)).cloned().collect();
    let prompts = Prompts::new(train, &sample, labels, options)?;
    let mut counter = TokenCounter::new(|text: &str| count(tokenizer, text));
    let mut tokens = 0;
    for row in 0..sample.len() {
        tokens += counter.prompt(&prompts.messages(row, Structure::Schema)?);
    }
    let answer = |label: &String| count(tokenizer, &serde_json::json!({ "label": label }).to_string());
    let answers: usize = labels.iter().map(answer).sum();
    Ok((tokens as f64 / sample.len().max(1) as f64, answers as f64 / labels.len().max(1) as f64))
}

impl Forecast {
    fn add(
        &mut self,
        name: String,
        shots: &str,
        prompt_tokens: f64,
        answer_tokens: f64,
        test_rows: Option<usize>,
        prices: &Prices,
    ) {
        let price = prices.of(&name);
        let per_1000 = fewshot::Usage {
            prompt: (1e3 * prompt_tokens) as u64,
            cached: 0,
            completion: (1e3 * answer_tokens) as u64,
        };
        let cost_per_1000 = price.map(|price| price.cost(&per_1000));
        self.models.push(Remote {
            shots: shots.to_owned(),
            prompt_tokens,
            answer_tokens,
            cost_per_1000,
            batch_cost_per_1000: price.and_then(|price| Some(price.batch? * cost_per_1000?)),
            test_rows_cost: test_rows.and_then(|rows| Some(cost_per_1000? * rows as f64 / 1e3)),
            fine_tuning_cost: price
                .and_then(|price| price.fine_tuning(self.training_tokens, self.epochs.into())),
            break_even: cost_per_1000.map(|cost| BreakEven::new(prices.hardware, self.queries_per_s, cost)),
            name,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_its_epochs_and_its_validations() {
        let recipe = Recipe { epochs: Some(3.0), batch: Some(32), ..Recipe::default() };
        // Four validations of at most 500 rows and one of all, at two examples a row.
        assert!((work(&recipe, 9600, 400, false) - (28_800.0 + 2.0 * 2000.0)).abs() < 1e-6);
        assert!((work(&recipe, 9600, 1000, false) - (28_800.0 + 2.0 * 3000.0)).abs() < 1e-6);
        let short = Recipe { max_steps: Some(10), ..recipe };
        assert!((work(&short, 9600, 0, false) - 320.0).abs() < 1e-6);
    }
}

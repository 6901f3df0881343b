//! A whole training on two replicas: the run of one, whatever the method, also when it was interrupted.

use std::path::Path;

use engine::StepReport;
use formats::BaseModel;
use kernels::Cpu;
use router::{Error, Method, Observer, Outcome, Plan, Recipe, Started, TrainData};
use routing::ReadOptions;

/// Stops after so many steps; remembers how many devices there were.
#[derive(Default)]
struct Watch {
    stop: Option<u64>,
    steps: u64,
    devices: usize,
}

impl Observer for Watch {
    fn started(&mut self, run: &Started) {
        self.devices = run.devices;
        assert_eq!(run.sums.is_some(), run.devices > 1);
    }
    fn stepped(&mut self, step: &StepReport) {
        self.steps = step.step;
    }
    fn goes_on(&mut self) -> bool {
        self.stop != Some(self.steps)
    }
}

struct Job {
    plan: Plan,
    data: TrainData,
}

impl Job {
    fn new(folder: &Path, method: Method, recompute: bool) -> Self {
        let path = folder.join("data.csv");
        let rows = (0..12).flat_map(|i| {
            let letter = char::from(b'a' + i);
            [format!("lost my card {letter},card_lost\n"), format!("why this fee {letter},fee\n")]
        });
        std::fs::write(&path, format!("text,label\n{}", rows.collect::<String>()))
            .expect("it can be written");
        let recipe = Recipe {
            method: Some(method),
            recompute,
            max_steps: Some(6),
            batch: Some(5),
            lr: Some(0.01),
            ..Recipe::default()
        };
        let fields = ReadOptions::default();
        let file = routing::read(&path, &fields).expect("it is a table");
        let data = TrainData::new(file, None, &fields, &recipe).expect("it has two labels");
        let (valid, text_field, label_field, precision) = (None, None, None, None);
        let base = "tiny".to_owned();
        let checkpoint_seconds = 0.0;
        let plan =
            Plan { data: path, valid, text_field, label_field, base, recipe, precision, checkpoint_seconds };
        Self { plan, data }
    }

    fn run(&self, devices: usize, out: &Path, resume: bool, watch: &mut Watch) -> Result<Outcome, Error> {
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/tiny-chat");
        let base = BaseModel::open(model).expect("the fixture is committed");
        let backends = (0..devices).map(|_| Cpu::<f32>::new()).collect();
        router::train(backends, base, &self.data, &self.plan, out, resume, watch)
    }
}

#[test]
fn two_replicas_train_the_run_of_one() {
    for (method, recompute) in [
        (Method::Lora, false),
        (Method::Lora, true),
        (Method::Qlora, false),
        (Method::Full, false),
        (Method::Head, false),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let place = |name: &str| folder.path().join(name);
        let job = Job::new(folder.path(), method, recompute);
        let one = job.run(1, &place("one"), false, &mut Watch::default()).unwrap().run.manifest;
        let mut watch = Watch::default();
        let two = job.run(2, &place("two"), false, &mut watch).unwrap().run.manifest;
        // A head needs one.
        let shared = method != Method::Head;
        assert_eq!((watch.devices, two.device.starts_with("2 x cpu")), (1 + usize::from(shared), shared));
        assert_eq!((two.steps, two.validation.accuracy), (one.steps, one.validation.accuracy), "{method:?}");
        if !shared {
            continue;
        }

        let mut stopped = Watch { stop: Some(3), ..Watch::default() };
        let interrupted = job.run(2, &place("again"), false, &mut stopped);
        assert!(matches!(interrupted, Err(Error::Stopped)), "{method:?}");
        let again = job.run(2, &place("again"), true, &mut Watch::default()).unwrap();
        assert!(again.steps < 6, "{method:?}: it began anew");
        assert_eq!(again.run.manifest.files, two.files, "{method:?}: other bytes");
    }
}

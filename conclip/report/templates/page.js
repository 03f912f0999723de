"use strict";
(() => {
  const byId = (id) => document.getElementById(id);

  // Theme: the reader's system decides until the button is used.
  const root = document.documentElement;
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  const button = byId("theme");
  let chosen = null;
  const theme = () => chosen ?? (system.matches ? "dark" : "light");
  const applyTheme = () => {
    root.dataset.theme = theme();
    button.textContent = theme() === "dark" ? "Light" : "Dark";
    draw();
  };
  button.hidden = false;
  button.addEventListener("click", () => { chosen = theme() === "dark" ? "light" : "dark"; applyTheme(); });
  system.addEventListener("change", applyTheme);
  window.addEventListener("beforeprint", () => { root.dataset.theme = "light"; draw(); });
  window.addEventListener("afterprint", applyTheme);

  // Charts, drawn when they come into view, again when the theme changes.
  const specs = JSON.parse(byId("charts-data").textContent);
  const views = new Map();
  const config = () => {
    const style = getComputedStyle(root);
    const [ink, quiet, line] = ["--ink", "--quiet", "--line"].map((name) => style.getPropertyValue(name).trim());
    const text = { labelColor: quiet, titleColor: quiet, labelFontSize: 11, titleFontSize: 12, titleFontWeight: "normal" };
    return {
      background: "transparent", font: "system-ui, sans-serif", view: { stroke: null },
      axis: { ...text, gridColor: line, domainColor: line, tickColor: line }, axisX: { grid: false },
      legend: { ...text, labelColor: ink, symbolStrokeWidth: 2 }, title: { color: ink },
      rule: { color: quiet },
    };
  };
  const drawOne = async (element) => {
    const drawn = element.dataset.drawn;
    if (drawn === root.dataset.theme) return;
    element.dataset.drawn = root.dataset.theme;
    views.get(element)?.finalize();
    const options = { actions: false, renderer: "svg", ast: true, config: config() };
    try {
      views.set(element, await vegaEmbed(element, specs[element.id], options));
      element.dataset.state = "done";
    } catch (error) {
      element.textContent = "This chart could not be drawn.";
      element.dataset.state = "failed";
      console.error(error);
    }
  };
  const seen = new Set();
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) if (entry.isIntersecting) { seen.add(entry.target); drawOne(entry.target); }
  }, { rootMargin: "600px" });
  const draw = () => seen.forEach(drawOne);
  document.querySelectorAll(".chart").forEach((element) => watcher.observe(element));
  window.addEventListener("beforeprint", () => document.querySelectorAll(".chart").forEach((e) => { seen.add(e); drawOne(e); }));
  applyTheme();

  // Responses: unpacked once, shown as text only.
  const packed = byId("rows-data").textContent.trim();
  if (!packed || !byId("responses")) return;
  const unpack = async () => {
    const bytes = Uint8Array.from(atob(packed), (c) => c.charCodeAt(0));
    return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).json();
  };
  const element = (tag, text, className) => {
    const made = document.createElement(tag);
    if (text !== undefined) made.textContent = text;
    if (className) made.className = className;
    return made;
  };

  unpack().then((data) => {
    const { problems, models, conditions, outcomes, rows } = data;
    const CORRECT = outcomes.indexOf("correct"), TRUNCATED = outcomes.indexOf("truncated");
    const ERROR = outcomes.indexOf("grader_error");
    const list = byId("problems"), filter = byId("filter"), find = byId("find"), condition = byId("condition");
    conditions.forEach((name, index) => condition.append(new Option(name, index)));
    byId("condition-label").hidden = conditions.length < 2;

    // rows: [problem, model, condition, sample, outcome, tokens, extracted, text]
    const cells = new Map();
    for (const row of rows) {
      const key = `${row[2]}/${row[0]}`;
      if (!cells.has(key)) cells.set(key, models.map(() => []));
      cells.get(key)[row[1]].push(row);
    }
    const cellsOf = (problem) => cells.get(`${condition.value}/${problem}`) ?? models.map(() => []);
    // Of the responses that could be graded: without any, NaN, which is neither more nor less than another share.
    const share = (responses) => {
      const graded = responses.filter((r) => r[4] !== ERROR);
      return graded.filter((r) => r[4] === CORRECT).length / graded.length;
    };
    const mean = (responses) => responses.reduce((sum, r) => sum + r[5], 0) / Math.max(1, responses.length);
    // First and last: of the models that have responses to the problem; runs side by side may have other problems.
    const asked = (c) => c.filter((responses) => responses.length);
    const differ = (of, c) => of(asked(c).at(-1)) - of(asked(c)[0]);
    const wanted = {
      all: () => true,
      gained: (c) => differ(share, c) > 0,
      lost: (c) => differ(share, c) < 0,
      longer: (c) => differ(mean, c) > 0,
      truncated: (c) => c.some((responses) => responses.some((r) => r[4] === TRUNCATED)),
    };

    let sample = 0;
    const fill = () => {
      const before = list.value;
      const text = find.value.trim().toLowerCase();
      const options = document.createDocumentFragment();
      let count = 0;
      problems.forEach((problem, index) => {
        const mine = cellsOf(index);
        if (mine.every((responses) => !responses.length) || !wanted[filter.value](mine)) return;
        if (text && !`${problem.id} ${problem.question} ${problem.answer}`.toLowerCase().includes(text)) return;
        const lengths = mine.map((responses) => (responses.length ? Math.round(mean(responses)) : "-")).join(" → ");
        options.append(new Option(`${lengths}:  ${problem.question.slice(0, 60) || problem.id}`, index));
        count += 1;
      });
      list.replaceChildren(options);
      byId("count").textContent = `${count} of ${problems.length} problems, mean tokens ${models.join(" → ")}`;
      list.value = [...list.options].some((option) => option.value === before) ? before : (list.options[0]?.value ?? "");
      show();
    };

    const pieces = (text) => text.split(/(?<=[.!?;]\s|\n)/);
    const LIMIT = 400;
    const cutMarks = (text, last) => {
      // Longest common subsequence of sentences; too long ones stay unmarked.
      const a = pieces(text), b = pieces(last);
      if (a.length > LIMIT || b.length > LIMIT) return a.map((piece) => [piece, false]);
      const same = (i, j) => a[i].trim() === b[j].trim();
      const best = Array.from({ length: a.length + 1 }, () => new Uint16Array(b.length + 1));
      for (let i = a.length - 1; i >= 0; i--)
        for (let j = b.length - 1; j >= 0; j--)
          best[i][j] = same(i, j) ? best[i + 1][j + 1] + 1 : Math.max(best[i + 1][j], best[i][j + 1]);
      const marked = [];
      for (let i = 0, j = 0; i < a.length; i++) {
        while (j < b.length && !same(i, j) && best[i][j + 1] >= best[i + 1][j] && best[i][j + 1] === best[i][j]) j++;
        const kept = j < b.length && same(i, j);
        marked.push([a[i], !kept]);
        if (kept) j++;
      }
      return marked;
    };

    const show = () => {
      const problem = problems[list.value];
      byId("view").hidden = !problem;
      if (!problem) return;
      const mine = cellsOf(list.value);
      const most = Math.max(...mine.map((responses) => responses.length));
      sample = Math.min(sample, most - 1);
      byId("question").textContent = problem.question || problem.id;
      const level = problem.level === null ? "" : `, level ${problem.level}`;
      byId("facts").textContent = `${problem.benchmark}, ${problem.id}${level}; answer ${problem.answer}`;
      byId("sample").textContent = `sample ${sample + 1} of ${most}`;
      byId("previous").disabled = sample <= 0;
      byId("next").disabled = sample >= most - 1;
      const asking = models.map((_, index) => index).filter((index) => mine[index].length);
      const last = mine[asking.at(-1)][sample]?.[7];
      byId("columns").replaceChildren(...asking.map((index) => {
        const name = models[index];
        const response = mine[index][sample];
        const box = element("article", undefined, "response");
        box.append(element("h4", name));
        if (!response) { box.append(element("p", "no such sample", "quiet")); return box; }
        const facts = element("p");
        facts.append(element("span", outcomes[response[4]].replace("_", " "), `outcome ${outcomes[response[4]]}`));
        facts.append(`, ${response[5]} tokens${response[6] === null ? "" : `, answers ${response[6]}`}`);
        const text = element("pre");
        text.dir = "auto";
        text.tabIndex = 0;
        text.setAttribute("aria-label", `response of ${name}`);
        const marks = index !== asking.at(-1) && last !== undefined ? cutMarks(response[7], last) : [[response[7], false]];
        for (const [piece, isCut] of marks) text.append(isCut ? element("span", piece, "cut") : piece);
        box.append(facts, text);
        return box;
      }));
    };

    list.addEventListener("change", () => { sample = 0; show(); });
    for (const control of [filter, condition]) control.addEventListener("change", fill);
    find.addEventListener("input", fill);
    byId("previous").addEventListener("click", () => { sample -= 1; show(); });
    byId("next").addEventListener("click", () => { sample += 1; show(); });
    fill();
    // Begin with what tells most: the largest cut among the problems the last model always solves.
    const cut = (index) => {
      const c = asked(cellsOf(index));
      return c.length && share(c.at(-1)) === 1 ? mean(c[0]) - mean(c.at(-1)) : -Infinity;
    };
    const first = problems.reduce((best, _, index) => (cut(index) > cut(best) ? index : best), 0);
    if (models.length > 1 && list.querySelector(`option[value="${first}"]`)) { list.value = String(first); show(); }
    byId("responses").dataset.state = "done";
  }).catch((error) => {
    byId("columns").textContent = "This browser cannot unpack the responses.";
    console.error(error);
  });
})();

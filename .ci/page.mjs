// What .ci/page runs.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { basename, resolve } from "node:path";
import { pathToFileURL } from "node:url";
import { chromium } from "playwright-core";

const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM,
  args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"],
});
const problems = [];

// In the page: texts that leave their picture or cover one another, and what is wider than the page.
function look() {
  const found = [];
  if (document.documentElement.scrollWidth > innerWidth) found.push(`the page is ${document.documentElement.scrollWidth} wide`);
  for (const svg of document.querySelectorAll("svg")) {
    const frame = svg.getBoundingClientRect();
    if (frame.width < 100 || !svg.querySelector("path, circle, rect")) found.push(`${svg.getAttribute("aria-labelledby")} is empty`);
    const texts = [...svg.querySelectorAll("text")].map((text) => ({ text: text.textContent, box: text.getBoundingClientRect() }));
    texts.forEach(({ text, box }, place) => {
      const outside = box.left < frame.left - 1 || box.right > frame.right + 1 || box.top < frame.top - 1 || box.bottom > frame.bottom + 1;
      if (outside) found.push(`"${text}" leaves ${svg.getAttribute("aria-labelledby")}`);
      for (const other of texts.slice(place + 1)) {
        const across = Math.min(box.right, other.box.right) - Math.max(box.left, other.box.left);
        const down = Math.min(box.bottom, other.box.bottom) - Math.max(box.top, other.box.top);
        if (across > 1 && down > 3) found.push(`"${text}" and "${other.text}" overlap in ${svg.getAttribute("aria-labelledby")}`);
      }
    });
    const size = parseFloat(getComputedStyle(svg).fontSize) * frame.width / svg.viewBox.baseVal.width;
    if (size < 8.5) found.push(`text of ${size.toFixed(1)} px in ${svg.getAttribute("aria-labelledby")}`);
  }
  return found;
}

for (const file of process.argv.slice(2)) {
  for (const [width, height] of [[390, 844], [1280, 900]]) {
    for (const colorScheme of ["light", "dark"]) {
      const context = await browser.newContext({ viewport: { width, height }, colorScheme });
      const page = await context.newPage();
      const where = `${file} at ${width} px, ${colorScheme}`;
      const tell = (text) => problems.push(`${where}: ${text}`);
      page.on("request", (request) => /^(file|data):/.test(request.url()) || tell(`loads ${request.url()}`));
      page.on("pageerror", (error) => tell(`fails: ${error.message}`));
      page.on("console", (message) => message.type() === "error" && tell(`says: ${message.text()}`));
      await page.goto(pathToFileURL(resolve(file)).href);
      (await page.evaluate(look)).forEach(tell);
      await page.evaluate(axe);
      const { violations } = await page.evaluate(() => globalThis.axe.run());
      for (const { id, nodes } of violations) tell(`axe: ${id}: ${nodes.slice(0, 3).map((node) => `${node.target.join(" ")} ${node.failureSummary ?? ""}`).join("; ")}`);
      const values = async () => page.$$eval("#scores tbody tr td:nth-child(2)", (cells) => cells.map((cell) => Number(cell.dataset.value)));
      const before = await values();
      if (process.env.SHOTS) {
        const name = `${process.env.SHOTS}/${basename(file, ".html")}-${width}-${colorScheme}.png`;
        await page.screenshot({ path: name, fullPage: true });
      }
      const button = page.locator("#scores thead tr th:nth-child(3) button");
      await button.focus();
      await page.keyboard.press("Enter");
      const sorted = await page.$$eval("#scores tbody tr td:nth-child(3)", (cells) => cells.map((cell) => cell.dataset.value).filter((value) => value !== undefined).map(Number));
      if (sorted.some((value, place) => place > 0 && value < sorted[place - 1])) tell(`the table of ${before.length} rows is not sorted: ${sorted}`);
      await page.locator("#methods button.copy").click();
      const copied = () => document.querySelector("[role=status]").textContent.includes("copied");
      await page.waitForFunction(copied, null, { timeout: 5000 }).catch(() => tell("the table is not copied"));
      await context.close();
    }
  }
  console.log(`looked at ${file}`);
}
await browser.close();
problems.forEach((problem) => console.error(problem));
process.exit(problems.length > 0 ? 1 : 0);

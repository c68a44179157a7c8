"""Pages of the shapes that the web has, in English, Chinese and Japanese, with what belongs to their content marked: the set that
benchmarks/html_extraction.py measures extractors on.

Between ⟦ and ⟧ stands what must be kept, between ⟨ and ⟩ what may be kept (captions, dates, names of authors, comments' buttons); all other
text is not content. ``{name}`` is a text of the page's language.
"""

# ruff: noqa: E501 (a page is one string)
import html
import re
from collections.abc import Iterator
from typing import NamedTuple

TEXTS: dict[str, dict[str, str]] = {
    "en": {
        "title": "The old mill turns again", "site": "River Courier", "home": "Home", "about": "About us", "contact": "Contact", "login": "Log in",
        "more": "Read more", "share": "Share on social media", "privacy": "Privacy policy", "rights": "All rights reserved.", "ad": "Advertisement: cheap flights to the sea",
        "cookie": "We use cookies to improve your experience on this site. Accept all cookies or change your settings.", "accept": "Accept all",
        "sub": "Subscribe to our weekly newsletter", "rel": "Related stories", "t1": "Five bridges that need repair", "t2": "How the harvest went this year", "t3": "A short history of bread",
        "h2": "What the miller says", "h3": "How it works", "by": "Anna Berg", "date": "3 May 2026", "cap": "The wheel in spring",
        "s1": "After more than forty years the old mill by the river has been set in motion again, and the whole village came to watch.",
        "s2": "The wheel, which was built from oak in 1894, had been taken apart plank by plank and put together anew.",
        "s3": "It is not allowed to open the sluice while anybody is standing in the channel.",
        "s4": "“We did not think that it would hold,” says the miller, “but it does.”",
        "s5": "The water that drives it comes from a headrace of two kilometres, which the monks dug in the thirteenth century.",
        "s6": "Whoever wants to see it should come on a Saturday, when flour is ground from nine to noon.",
        "i1": "200 grams of flour from the mill", "i2": "100 ml of warm water", "i3": "a pinch of salt", "i4": "one spoon of honey",
        "q1": "Does the mill run in winter?", "q2": "Can I buy the flour?", "word": "headrace", "price": "€30",
        "c1": "My grandfather worked there, and I am glad to hear the wheel again.", "c2": "Is it loud? I live across the street and would like to know.",
    },
    "zh": {
        "title": "老磨坊重新转动", "site": "河边日报", "home": "首页", "about": "关于我们", "contact": "联系方式", "login": "登录",
        "more": "阅读全文", "share": "分享到社交媒体", "privacy": "隐私政策", "rights": "版权所有，未经许可不得转载。", "ad": "广告：特价机票飞往海边",
        "cookie": "我们使用 Cookie 来改善您在本网站的体验。请接受所有 Cookie 或更改设置。", "accept": "全部接受",
        "sub": "订阅我们的每周通讯", "rel": "相关报道", "t1": "五座需要维修的桥", "t2": "今年的收成怎么样", "t3": "面包简史",
        "h2": "磨坊主怎么说", "h3": "工作原理", "by": "王小明", "date": "2026年5月3日", "cap": "春天的水轮",
        "s1": "四十多年之后，河边的老磨坊又重新转动起来，全村的人都赶来观看这难得的一幕。",
        "s2": "这座用橡木造的水轮建于一八九四年，被一块一块地拆开，然后重新组装起来。",
        "s3": "有人站在水渠里的时候，打开闸门是不可以的。",
        "s4": "“我们没有想到它还能用，”磨坊主说，“可是它真的转起来了。”",
        "s5": "推动它的水来自一条两公里长的引水渠，那是修士们在十三世纪挖出来的。",
        "s6": "想看的人应该星期六来，那天上午九点到十二点磨面粉。",
        "i1": "磨坊的面粉两百克", "i2": "温水一百毫升", "i3": "盐少许", "i4": "蜂蜜一勺",
        "q1": "冬天磨坊也转吗？", "q2": "可以买到面粉吗？", "word": "引水渠", "price": "￥30元",
        "c1": "我的爷爷以前在那里工作，很高兴又听到水轮的声音。", "c2": "声音大不大？我就住在街对面，想了解一下。",
    },
    "ja": {
        "title": "古い水車がまた回り始めた", "site": "川辺新聞", "home": "ホーム", "about": "当サイトについて", "contact": "お問い合わせ", "login": "ログイン",
        "more": "続きを読む", "share": "SNSで共有する", "privacy": "プライバシーポリシー", "rights": "無断転載を禁じます。", "ad": "広告：海への格安航空券",
        "cookie": "当サイトではサービス向上のためクッキーを使用しています。すべて受け入れるか設定を変更してください。", "accept": "すべて受け入れる",
        "sub": "週刊ニュースレターを購読する", "rel": "関連記事", "t1": "修理が必要な五つの橋", "t2": "今年の収穫はどうだったか", "t3": "パンの小さな歴史",
        "h2": "粉屋の話", "h3": "しくみ", "by": "山田花子", "date": "2026年5月3日", "cap": "春の水車",
        "s1": "四十年あまりの時を経て、川辺の古い水車がまた回り始め、村中の人が見に集まった。",
        "s2": "樫の木で造られた水車は一八九四年のもので、板を一枚ずつ外して組み直された。",
        "s3": "水路に人が立っているときに水門を開けてはならない。",
        "s4": "「動くとは思わなかった」と粉屋は言う。「でも、本当に回ったんだ。」",
        "s5": "水車を動かす水は、十三世紀に修道士たちが掘った二キロの導水路から来る。",
        "s6": "見たい人は土曜日に来るとよい。午前九時から正午まで粉をひいている。",
        "i1": "水車の小麦粉二百グラム", "i2": "ぬるま湯百ミリリットル", "i3": "塩少々", "i4": "はちみつ一さじ",
        "q1": "冬も水車は回りますか。", "q2": "粉は買えますか。", "word": "導水路", "price": "￥30円",
        "c1": "祖父がそこで働いていたので、また水車の音が聞けてうれしいです。", "c2": "音は大きいですか。向かいに住んでいるので知りたいです。",
    },
}  # fmt: skip
_NAV = "<ul><li><a href=/>{home}</a></li><li><a href=/a>{about}</a></li><li><a href=/c>{contact}</a></li><li><a href=/l>{login}</a></li></ul>"
_RELATED = "<h3>{rel}</h3><ul><li><a href=/1>{t1}</a></li><li><a href=/2>{t2}</a></li><li><a href=/3>{t3}</a></li></ul>"
_FOOT = "<p>© 2026 {site}. {rights}</p><p><a href=/p>{privacy}</a> | <a href=/c>{contact}</a></p>"
_STORY = "<p>⟦{s1}⟧</p><p>⟦{s2}⟧</p><h2>⟦{h2}⟧</h2><p>⟦{s4}⟧</p><p>⟦{s5}⟧</p><p>⟦{s6}⟧</p>"
_ITEMS = "<li>⟦{i1}⟧</li><li>⟦{i2}⟧</li><li>⟦{i3}⟧</li><li>⟦{i4}⟧</li>"
SHAPES: dict[str, str] = {
    "news": f"<header><a href=/>{{site}}</a><nav>{_NAV}</nav></header><main><article><h1>⟦{{title}}⟧</h1><p class=byline>⟨{{by}}, {{date}}⟩</p>{_STORY}"
    f"</article><aside>{_RELATED}</aside></main><footer>{_FOOT}</footer>",
    "news, divs": f"<div id=top>{_NAV}</div><div class=wrap><div class=story><h1>⟦{{title}}⟧</h1><div class=meta>⟨{{date}}⟩</div>{_STORY}<div class=share>{{share}}</div></div>"
    f"<div class=sidebar>{_RELATED}<div class=ad>{{ad}}</div></div></div><div id=footer>{_FOOT}</div>",
    "forum": "<div class=header>" + _NAV + "</div><h1>⟦{title}⟧</h1><div class=thread>"
    "<div class=post><div class=user>⟨{by}⟩</div><div class=body><p>⟦{s1}⟧</p><blockquote>⟦{s3}⟧</blockquote></div><div class=buttons>⟨<a href=#>{share}</a>⟩</div></div>"
    "<div class=post><div class=user>⟨bob⟩</div><div class=body>⟦{c1}⟧<br>⟦{s6}⟧</div></div><div class=post><div class=user>⟨eve⟩</div><div class=body>⟦{c2}⟧</div></div></div>"
    f"<div class=footer>{_FOOT}</div>",
    "forum, tables": "<table width=100%><tr><td><a href=/>{home}</a> | <a href=/f>{about}</a> | <a href=/m>{contact}</a></td></tr></table><h2>⟦{title}⟧</h2>"
    "<table><tr><td>⟨{by}⟩</td><td>⟦{s1}⟧<br><br>⟦{s2}⟧</td></tr><tr><td>⟨bob⟩</td><td>⟦{c2}⟧</td></tr></table><center><font size=1>© 2026 {site}</font></center>",
    "docs": f"<nav class=sidebar>{_NAV}</nav><main><div class=breadcrumb><a href=/>{{home}}</a> › <a href=/d>{{about}}</a></div><h1>⟦{{h3}}⟧</h1><p>⟦{{s5}}⟧</p>"
    '<h2>⟦{word}⟧</h2><p>⟦{s3}⟧</p><pre><code>⟦open_sluice(width=2)⟧\n⟦    wait("{word}")⟧</code></pre><dl><dt><code>⟦width⟧</code></dt><dd>⟦{s2}⟧</dd></dl></main>'
    f"<footer>{_FOOT}</footer>",
    "code": "<div class=nav><a href=/>{home}</a> <a href=/l>{login}</a> <a href=/a>{about}</a></div><h1>⟦{h3}⟧</h1><p>⟦{s1}⟧</p>"
    "<figure class=highlight><pre>⟦def turn(wheel):⟧\n⟦    if wheel.speed &lt; 3 &amp;&amp; open:⟧\n⟦        return None⟧</pre></figure><p>⟦{s3}⟧</p>",
    "recipe": "<body><article><h1>⟦{t3}⟧</h1><p>⟦{s2}⟧</p><ul>" + _ITEMS + "</ul><p>⟦{s6}⟧</p></article>",
    "recipe, site": f"<header><nav>{_NAV}</nav></header><main><h1>⟦{{t3}}⟧</h1><div class=ingredients><h2>⟦{{h3}}⟧</h2><ul class=list>{_ITEMS}</ul></div>"
    f"<ol><li>⟦{{s3}}⟧</li><li>⟦{{s6}}⟧</li></ol></main><aside>{_RELATED}</aside><footer>{_FOOT}</footer>",
    "eight items": "<body><h1>⟦{title}⟧</h1><ul><li>⟦{s1}⟧</li><li>⟦{s2}⟧</li><li>⟦{s3}⟧</li><li>⟦{s4}⟧</li><li>⟦{s5}⟧</li><li>⟦{s6}⟧</li><li>⟦{c1}⟧</li><li>⟦{c2}⟧</li></ul>",
    "table": f"<nav>{_NAV}</nav><h1>⟦{{title}}⟧</h1><p>⟦{{s1}}⟧</p><table><tr><th>⟦{{word}}⟧</th><th>⟦{{price}}⟧</th><th>⟦{{date}}⟧</th></tr>"
    f"<tr><td>⟦{{i1}}⟧</td><td>⟦7⟧</td><td>⟦1894⟧</td></tr><tr><td>⟦{{i2}}⟧</td><td>⟦12⟧</td><td>⟦1901⟧</td></tr></table><footer>{_FOOT}</footer>",
    "table alone": "<h1>⟦{h3}⟧</h1><table>" + "".join(f"<tr><td>⟦{{i{n}}}⟧</td><td>⟦{n}00⟧</td></tr>" for n in (1, 2, 3, 4)) + "</table>",
    "amp": f"<amp-sidebar id=s layout=nodisplay>{_NAV}</amp-sidebar><header><a href=/>{{site}}</a></header><article><h1>⟦{{title}}⟧</h1><amp-img src=x alt=x></amp-img>{_STORY}"
    "<amp-ad width=300>{ad}</amp-ad></article><amp-consent id=c><div>{cookie}</div></amp-consent><footer>© 2026 {site}</footer>",
    "product": f"<header>{_NAV}</header><div class=product><h1>⟦{{i1}}⟧</h1><p class=price><span>⟦{{price}}⟧</span></p><button>OK</button><p>⟦{{s2}}⟧</p>"
    f"<ul class=features><li>⟦{{i2}}⟧</li><li>⟦{{i3}}⟧</li></ul></div><section class=related>{_RELATED}</section><footer>{_FOOT}</footer>",
    "faq": f"<nav>{_NAV}</nav><h1>⟦{{about}}⟧</h1><details open><summary>⟦{{q1}}⟧</summary><p>⟦{{s3}}⟧</p></details><details><summary>⟦{{q2}}⟧</summary><p>⟦{{s6}}⟧</p></details>"
    f"<footer>{_FOOT}</footer>",
    "faq, list": "<h1>⟦{about}⟧</h1><dl><dt>⟦{q1}⟧</dt><dd>⟦{s3}⟧</dd><dt>⟦{q2}⟧</dt><dd>⟦{s6}⟧</dd></dl>",
    "wiki": f"<div id=mw-navigation>{_NAV}</div><div id=content><h1>⟦{{word}}⟧</h1><div id=toc class=toc><ul><li><a href=#1>1 {{h2}}</a></li><li><a href=#2>2 {{h3}}</a></li></ul></div>"
    "<p>⟦<b>{word}</b>⟧⟦<a href=/w>{s5}</a>⟧</p><h2>⟦{h3}⟧</h2><p>⟦{s2}⟧⟨<sup>[1]</sup>⟩ ⟦{s3}⟧</p><table class=infobox><tr><th>⟦{date}⟧</th><td>⟦1894⟧</td></tr></table></div>"
    f"<div id=footer>{_FOOT}</div>",
    "blog": f"<header><h1><a href=/>{{site}}</a></h1>{_NAV}</header><main><article><h2>⟦{{title}}⟧</h2><p>⟦{{s1}}⟧</p><p>⟦{{s3}}⟧</p><p>⟦{{s5}}⟧</p></article>"
    f"<section id=comments><h3>⟨2⟩</h3><div class=comment><b>⟨bob⟩</b><p>⟦{{c1}}⟧</p></div><div class=comment><b>⟨eve⟩</b><p>⟦{{c2}}⟧</p></div></section></main>"
    f"<aside class=widget>{_RELATED}</aside><footer>{_FOOT}</footer>",
    "blog, index": f"<header>{_NAV}</header><main><article><h2>⟦<a href=/1>{{t1}}</a>⟧</h2><p>⟦{{s1}}⟧</p><a href=/1>{{more}}</a></article>"
    f"<article><h2>⟦<a href=/2>{{t2}}</a>⟧</h2><p>⟦{{s2}}⟧</p><a href=/2>{{more}}</a></article></main><footer>{_FOOT}</footer>",
    "cookie banner": f"<div id=cookie-banner class='cookie-banner fixed' role=dialog><p>{{cookie}}</p><button>{{accept}}</button></div><nav>{_NAV}</nav>"
    f"<article><h1>⟦{{title}}⟧</h1>{_STORY}</article><footer>{_FOOT}</footer>",
    "cookie banner, no name": f"<nav>{_NAV}</nav><main><h1>⟦{{title}}⟧</h1>{_STORY}</main><div class=x1><div class=x2>{{cookie}} <a href=#>{{accept}}</a></div></div>",
    "newsletter": f"<div class=story><h1>⟦{{title}}⟧</h1>{_STORY}<div class=newsletter><h3>{{sub}}</h3><form><input><button>OK</button></form></div></div><footer>{_FOOT}</footer>",
    "singles": "<div id=main><p>⟦{s3}⟧</p><p>⟦<b>第</b>⟧⟦<i>三</i>⟧⟦条：价格<span>￥</span>30<span>元</span>。⟧</p><h2>⟦水⟧</h2><table><tr><td>⟦金⟧</td><td>⟦木⟧</td></tr></table><p>⟦€⟧ ⟦—⟧ ⟦가⟧</p></div>",
    "ruby": "<article><p>⟦<ruby>私<rt>わたし</rt></ruby>は<ruby>学生<rp>(</rp><rt>がくせい</rt><rp>)</rp></ruby>です⟧</p><p>⟦{s1}⟧</p><p>⟦{s2}⟧</p></article>",
    "poem": f"<div class=menu>{_NAV}</div><h1>⟦{{title}}⟧</h1><p>⟦{{i1}}⟧<br>⟦{{i2}}⟧<br>⟦{{i3}}⟧<br>⟦{{i4}}⟧</p>",
    "short": "<h1>⟦{h3}⟧</h1><p>⟦{i3}⟧</p>",
    "layout tables": "<table border=0><tr><td valign=top><a href=/>{home}</a><br><a href=/a>{about}</a><br><a href=/c>{contact}</a></td>"
    "<td><font size=5>⟦{title}⟧</font><p>⟦{s1}⟧<p>⟦{s2}⟧<p>⟦{s5}⟧</td></tr></table><hr><small>© 2026 {site}</small>",
    "figures": f"<nav>{_NAV}</nav><article><h1>⟦{{title}}⟧</h1><p>⟦{{s1}}⟧</p><figure><img src=x><figcaption>⟦{{cap}}⟧</figcaption></figure><p>⟦{{s2}}⟧</p>"
    "<figure><table><tr><td>⟦{i1}⟧</td><td>⟦7⟧</td></tr></table></figure><figure><blockquote>⟦{s4}⟧</blockquote></figure></article>",
    "hidden": "<main><h1>⟦{title}⟧</h1><p>⟦{s1}⟧</p><p hidden>{ad}</p><div style='display: none'>{cookie}</div><p>⟦{s2}⟧</p><template>{ad}</template></main>",
    "sections": f"<header class=site-header><nav>{_NAV}</nav></header><div id=root><section><h1>⟦{{title}}⟧</h1><p>⟦{{s1}}⟧</p></section><section><h2>⟦{{h3}}⟧</h2><div>⟦{{s5}}⟧</div>"
    f"<div>⟦{{s6}}⟧</div></section></div><footer>{_FOOT}</footer>",
    "terms": f"<div class=topnav>{_NAV}</div><h1>⟦{{privacy}}⟧</h1><ol><li><p>⟦{{s3}}⟧</p><ol><li>⟦{{i3}}⟧</li><li>⟦{{s6}}⟧</li></ol></li><li><p>⟦{{s2}}⟧</p></li></ol>",
    "sidebar class on body": f"<body class='home has-sidebar menu'><div id=page class='site with-sidebar'><div id=menu>{_NAV}</div><div class=entry-content><h1>⟦{{title}}⟧</h1>{_STORY}</div></div>",
    "link list": "<h1>⟦{rel}⟧</h1><ul><li><a href=/1>⟦{t1}⟧</a>: ⟦{s1}⟧</li><li><a href=/2>⟦{t2}⟧</a>: ⟦{s2}⟧</li><li><a href=/3>⟦{t3}⟧</a>: ⟦{s6}⟧</li></ul>",
    "all in a form": f"<form id=aspnetForm><div class=menu>{_NAV}</div><div><h1>⟦{{title}}⟧</h1>{_STORY}</div></form>",
    "header with heading": f"<nav>{_NAV}</nav><header><h1>⟦{{title}}⟧</h1></header><div id=content><p>⟦{{s1}}⟧</p><h2>⟦{{h2}}⟧</h2><p>⟦{{s4}}⟧</p></div>",
}
_MARKS = re.compile("[⟦⟧⟨⟩]")
_NOT_SHOWN = re.compile(r"<(rt|rp)>.*?</\1>|<[^>]*>")


class LabelledPage(NamedTuple):
    """A page and what an extractor should make of it."""

    name: str
    language: str
    page: str
    gold: list[str]
    """What must be kept, in order."""
    neutral: list[str]
    """What may be kept."""


def labelled_pages() -> Iterator[LabelledPage]:
    """All shapes in all languages."""
    for name, shape in SHAPES.items():
        for language, texts in TEXTS.items():
            marked = shape.format(**texts)
            page = _MARKS.sub("", marked)
            head = f"<!DOCTYPE html><html lang={language}><head><meta charset=utf-8><title>{texts['title']} - {texts['site']}</title><script>var x = 1;</script></head>"
            gold = [_shown(part) for part in re.findall("⟦(.*?)⟧", marked, re.DOTALL)]
            yield LabelledPage(name, language, head + page, gold, [_shown(part) for part in re.findall("⟨(.*?)⟩", marked, re.DOTALL)])


def _shown(part: str) -> str:
    return html.unescape(_NOT_SHOWN.sub("", part)).strip()
